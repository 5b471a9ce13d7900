"""Every config that is shipped composes, validates and builds; the 4 B network on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from acestep.adapters import Adapter
from acestep.config import schema
from acestep.config.help import is_option_for
from acestep.config.run import CONFIGS, build
from acestep.config.run_dir import identity
from acestep.data import Crop, CropText, TaskMix
from acestep.data.captions import ShuffleTags
from acestep.flow import FlowMatching, LogitNormal, LogitNormalMax, MinSNR
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.dit import Padding
from acestep.training.fit import NetworkInit
from acestep.training.tasks import Conditioning

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml") if is_option_for(path, "train"))
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
TRAINING = ("timesteps", "weighting", "objective", "optimizer", "lr", "trainer", "adapter", "data")
SAMPLING = ("schedule", "solver", "guidance", "correction", "clamp", "smoothing")
NEEDED = {"custom": ["schedule.timesteps=[1.0,0.5,0.0]"], "turbo_custom": ["schedule.timesteps=[1.0,0.5]"]}
GROUPS = TRAINING + SAMPLING
OPTIONS = [(g, p.stem) for g in GROUPS for p in sorted((CONFIGS / g).glob("*.yaml")) if p.stem != "checkpoint"]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    schema.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


def composed(overrides: Sequence[str] = ()) -> DictConfig:
    return compose("train", ["data.path=store", "weights=micro", *overrides])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_and_its_parts_build(experiment: str) -> None:
    cfg = composed([f"experiment={experiment}"])
    assert cfg.name == experiment
    assert NetworkInit(cfg.network)
    for group in ("objective", "optimizer", "lr", "data", "trainer", "adapter"):
        build(cfg[group])
    with torch.device("meta"):
        network = AceStep(build(cfg.model))
    assert sum(parameter.numel() for parameter in network.parameters()) > 0


@pytest.mark.parametrize("experiment", ["micro_lora", "xl_lora"])
@pytest.mark.parametrize("adapter", ["dora", "loha", "lokr", "lora", "oft", "rslora"])
def test_every_adapter_goes_with_an_experiment(experiment: str, adapter: str) -> None:
    assert isinstance(build(composed([f"experiment={experiment}", f"adapter={adapter}"]).adapter), Adapter)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_states_its_purpose_and_is_short(experiment: str) -> None:
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    assert len(lines) <= 30


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_a_group_builds(group: str, option: str) -> None:
    main, needed = ("infer", NEEDED.get(option, [])) if group in SAMPLING else ("train", ["data.path=store"])
    build(compose(main, [f"{group}={option}", *needed])[group])


def test_the_micro_model_has_its_size() -> None:
    with torch.device("meta"):
        network = AceStep(build(composed(["model=micro"]).model))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(2.1e6, rel=0.3)


def test_the_timesteps_group_reaches_the_objective() -> None:
    objective = build(composed(["timesteps=uniform", "timesteps.high=0.5"]).objective)
    assert isinstance(objective, FlowMatching)
    assert objective.timesteps.high == 0.5


def test_the_weighting_group_reaches_the_objective() -> None:
    assert build(composed(["weighting=min_snr", "weighting.gamma=3"]).objective).weighting == MinSNR(gamma=3.0)


def test_upstreams_trainer_is_a_preset_that_goes_on_top_of_an_experiment() -> None:
    cfg = composed(["experiment=[micro_sft,upstream_v1_5_trainer]"])
    assert (cfg.trainer.max_steps, cfg.data.batch_size, cfg.model.hidden_size) == (1800, 8, 160)
    data, task, objective = build(cfg.data), build(cfg.task), build(cfg.objective)
    assert (data.crop_frames, data.crop, data.words, data.frozen) == (6000, Crop.head, CropText.whole, True)
    assert task.conditioning is Conditioning.upstream_v1_5_trainer
    assert not objective.masked
    assert objective.dropout.rate == 0.15
    assert isinstance(objective.timesteps, LogitNormal)
    assert isinstance(build(composed(["experiment=upstream_v1_5_trainer"]).objective).timesteps, LogitNormalMax)
    assert AceStepConfig(**{"padding": cfg.model.padding}).padding is Padding.upstream


def test_what_varies_between_epochs_is_given_on_the_command_line() -> None:
    captions = "data.captions=[{_target_: acestep.data.captions.ShuffleTags, rate: 0.5}]"
    config = build(composed(["data.tasks.cover=0.2", "data.tasks.repaint=0.3", captions]).data)
    assert config.tasks == TaskMix(cover=0.2, repaint=0.3)
    assert config.captions == (ShuffleTags(rate=0.5),)


def test_a_default_spelt_out_is_the_same_run_and_a_machine_setting_too() -> None:
    assert identity(composed()) == identity(composed(["optimizer.lr=1e-4"]))
    assert identity(composed()) == identity(
        composed(["trainer.accelerator=cpu", "data.workers=3", "run.dir=elsewhere"])
    )
    assert identity(composed()) != identity(composed(["optimizer.lr=2e-4"]))
    assert composed().run.dir == f"runs/train-{identity(composed())}"


def test_no_config_holds_an_absolute_path() -> None:
    for path in Path(CONFIGS).rglob("*.yaml"):
        assert ": /" not in path.read_text(), path
