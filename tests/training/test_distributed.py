"""A step is the same however its songs are split into batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from training import jobs

from acestep.training.callbacks import SampleSongs
from acestep.training.checkpoint import newest_checkpoint

pytestmark = pytest.mark.slow

# 8 songs make whole steps of 4.
EIGHT = {"held_out": 3, "ema": True, "callbacks": [jobs.KeepGradient()]}
METRICS = ("train/loss", "train/gradient_norm", "val/loss", "train/dropped/all")


@pytest.fixture(scope="module")
def alone(tiny: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with 4 songs a step."""
    folder = tmp_path_factory.mktemp("alone")
    assert jobs.run(1, folder, (tiny, store), batch_size=4, **EIGHT) == [0]
    return folder


def assert_same_run(one: Path, other: Path, metrics: Sequence[str] = METRICS, rel: float = 1e-5) -> None:
    for name in metrics:
        there, here = jobs.curve(one, name), jobs.curve(other, name)
        assert there.keys() == here.keys()
        assert here == pytest.approx(there, rel=rel, abs=1e-6), name
    there, here = torch.load(one / jobs.GRADIENT), torch.load(other / jobs.GRADIENT)
    assert there.keys() == here.keys()
    apart = sum((here[name] - value).double().square().sum() for name, value in there.items()).sqrt()
    assert apart <= 1e-5 * sum(value.double().square().sum() for value in there.values()).sqrt()
    there, here = torch.load(one / jobs.FINAL), torch.load(other / jobs.FINAL)
    for name, value in there.items():
        torch.testing.assert_close(
            here[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_accumulation_equals_one_batch(alone: Path, tiny: Path, store: Path, tmp_path: Path) -> None:
    assert jobs.run(
        1, tmp_path, (tiny, store), batch_size=1, trainer={"accumulate": 4, "validate_every": 12}, **EIGHT
    ) == [0]
    assert_same_run(alone, tmp_path)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one_batch(alone: Path, tiny: Path, store: Path, tmp_path: Path, strategy: str) -> None:
    options = EIGHT | {"callbacks": [*EIGHT["callbacks"], SampleSongs(str(tmp_path / "samples"), songs=1)]}
    trainer = {"strategy": strategy, "devices": "2"}
    assert jobs.run(2, tmp_path, (tiny, store), batch_size=2, trainer=trainer, **options) == [0, 0]
    assert_same_run(alone, tmp_path)
    assert len([*(tmp_path / "samples").rglob("*.flac")]) == 2


OTHERS = {
    "planner": ("val/loss_codes", "val/code_perplexity", "val/metadata_accuracy"),
    "adapted planner": ("val/loss_codes", "val/code_perplexity"),
    "tokenizer": ("val/explained_variance", "val/code_perplexity"),
    "autoencoder": ("val/si_sdr_db", "val/latent_std", "train/loss_features"),
}
"""What is metrics of each of the other trainings, beside its loss."""
OTHER = {name: value for name, value in EIGHT.items() if name != "ema"}


@pytest.fixture(scope="module")
def alone_other(trainings: dict[str, tuple], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same run of another training."""

    @cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        places, settings = trainings[kind]
        assert jobs.run(1, folder, places, batch_size=4, **OTHER | settings) == [0]
        return folder

    return made


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "strategy"), [*((kind, "ddp") for kind in OTHERS), ("planner", "fsdp2"), ("adapted planner", "fsdp2")]
)
def test_two_processes_equal_one_batch_for_other_tasks(
    kind: str, strategy: str, alone_other: Callable[[str], Path], trainings: dict[str, tuple], tmp_path: Path
) -> None:
    places, settings = trainings[kind]
    options = {"trainer": {"strategy": strategy, "devices": "2"} | settings.get("trainer", {})}
    if "planner" in kind:
        options["callbacks"] = [*OTHER["callbacks"], SampleSongs(str(tmp_path / "samples"), songs=1)]
    assert jobs.run(2, tmp_path, places, batch_size=2, **OTHER | settings | options) == [0, 0]
    # Gradients through logarithms of spectra enlarge the last bit: 3e-5 in six steps, and in float64 3e-14.
    rel = 1e-4 if kind == "autoencoder" else 1e-5
    assert_same_run(alone_other(kind), tmp_path, (*METRICS[:3], *OTHERS[kind]), rel)
    assert len([*(tmp_path / "samples").rglob("*.flac")]) == ("callbacks" in options) * 2


@pytest.mark.long
def test_signal_to_one_rank_stops_all_and_other_world_size_resumes(
    alone: Path, tiny: Path, store: Path, tmp_path: Path
) -> None:
    two = {"strategy": "fsdp2", "devices": "2"}
    options = EIGHT | {"callbacks": [jobs.KeepGradient(), jobs.TermAt(3, rank=1)]}
    assert jobs.run(2, tmp_path, (tiny, store), batch_size=2, trainer=two, **options) == [0, 0]
    assert newest_checkpoint(tmp_path).name == "stopped.ckpt"
    assert not (tmp_path / jobs.FINAL).exists()
    one = {"strategy": "fsdp2", "devices": "1"}
    assert jobs.run(1, tmp_path, (tiny, store), batch_size=4, trainer=one, **EIGHT) == [0]
    assert_same_run(alone, tmp_path)
