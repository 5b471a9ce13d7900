"""Presets and launchers compose, and the keys that a preset sweeps exist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from acestep.config import schema
from acestep.config.help import is_option_for
from acestep.config.run import CONFIGS

pytestmark = pytest.mark.long

PRESETS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml") if is_option_for(path, "train"))
EVALUATION_PRESETS = sorted(path.stem for path in (CONFIGS / "sweep").glob("*.yaml") if is_option_for(path, "evaluate"))


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    schema.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield


@pytest.mark.parametrize("preset", PRESETS)
def test_the_keys_of_a_preset_exist(preset: str) -> None:
    overrides = ["weights=micro", "data.path=STORE", "adapter=lora", f"sweep={preset}"]
    cfg = compose("train", overrides, return_hydra_config=True)
    assert cfg.hydra.mode is RunMode.MULTIRUN
    assert cfg.hydra.sweep.dir == f"runs/sweeps/{preset}"
    params = cfg.hydra.sweeper.params
    assert len(params) >= 1
    for key in params:
        assert OmegaConf.select(cfg, key) is not None


@pytest.mark.parametrize("preset", EVALUATION_PRESETS)
def test_lists_of_an_evaluation_are_one_evaluation(preset: str) -> None:
    cfg = compose("evaluate", [f"sweep={preset}", "out=DIR"], return_hydra_config=True)
    assert cfg.hydra.mode is not RunMode.MULTIRUN
    assert cfg.sweep == cfg.eval.sweep


def test_slurm_gives_each_run_a_gpu() -> None:
    cfg = compose("train", ["weights=micro", "data.path=STORE", "hydra/launcher=slurm"], return_hydra_config=True)
    assert "SlurmLauncher" in cfg.hydra.launcher._target_
    assert cfg.hydra.launcher.gpus_per_node == 1
