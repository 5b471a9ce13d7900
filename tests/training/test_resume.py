"""A run is a function of its config: repeated, or interrupted and resumed, it is bit-identical."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from acestep.adapters import LoRA
from acestep.training.dit import DiTModule

LORA = LoRA(rank=2, alpha=4, dropout=0.2)


class InterruptedRunError(Exception):
    """What a kill is to a test."""


class InterruptAt(Callback):
    """Breaks a run off before the optimiser's step after ``step``."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        if trainer.global_step == self.step:
            raise InterruptedRunError


def weights(module: DiTModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


def assert_same_bits(one: DiTModule, other: DiTModule) -> None:
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} tensors differ, among them {different[0]}"


def interrupted_and_resumed(run, folder: Path, at: int, **settings) -> DiTModule:
    with pytest.raises(InterruptedRunError):
        run(folder, callbacks=[InterruptAt(at)], **settings)
    assert list((folder / "checkpoints").glob("*.ckpt"))
    return run(folder, **settings)


def test_two_runs_of_50_steps_are_bit_identical(run, tmp_path: Path) -> None:
    assert_same_bits(run(tmp_path / "one", steps=50), run(tmp_path / "other", steps=50))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapter": LORA},
        {"ema": True, "trainer": {"accumulate": 2}},
        {"adapter": LORA, "ema": True, "trainer": {"accumulate": 2}, "workers": 2},
    ],
    ids=["full", "lora", "full-ema-accumulated", "lora-ema-accumulated-workers"],
)
@pytest.mark.parametrize("at", [3, pytest.param(7, marks=pytest.mark.long)])
def test_resumed_run_equals_uninterrupted_run(run, tmp_path: Path, settings: dict, at: int) -> None:
    # 9 songs in batches of 2 make epochs of 4 batches: every interruption falls in the middle of one.
    whole = run(tmp_path / "whole", steps=9, **settings)
    assert_same_bits(whole, interrupted_and_resumed(run, tmp_path / "broken", at, steps=9, **settings))


def test_metrics_of_a_resumed_run_have_no_gaps_or_duplicates(run, tmp_path: Path) -> None:
    run(tmp_path / "whole", steps=9)
    interrupted_and_resumed(run, tmp_path / "broken", 7, steps=9)

    def validated(folder: Path) -> list[tuple[str, str]]:
        with (folder / "metrics.csv").open() as file:
            return [(row["step"], row["value"]) for row in csv.DictReader(file) if row["name"] == "val/loss"]

    assert validated(tmp_path / "broken") == validated(tmp_path / "whole")
    assert [step for step, _ in validated(tmp_path / "whole")] == ["0", "3", "6", "9"]


def test_resumed_run_keeps_the_same_number_of_checkpoints(run, tmp_path: Path) -> None:
    interrupted_and_resumed(run, tmp_path, 5, steps=8)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step=8.ckpt", "last.ckpt"}


def test_adapter_checkpoint_has_trained_parameters_only(run, tmp_path: Path) -> None:
    module = run(tmp_path, steps=2, adapter=LORA)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    assert saved.keys() == module.trained_parameters().keys()
    assert all("lora_" in name for name in saved)
    assert any(value.abs().sum() > 0 for name, value in saved.items() if "lora_B" in name)


def test_a_checkpoint_of_other_parameters_is_refused(run, tmp_path: Path) -> None:
    run(tmp_path, steps=2, adapter=LORA)
    with pytest.raises(ValueError, match=r"run\.dir: its checkpoint trains other parameters"):
        run(tmp_path, steps=4)


def test_ema_result_is_the_average_and_checkpoint_has_raw_weights(run, tmp_path: Path) -> None:
    averaged = run(tmp_path / "ema", steps=4, ema=True)
    raw = run(tmp_path / "raw", steps=4)
    saved = torch.load(tmp_path / "ema" / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    for name, value in raw.trained_parameters().items():
        assert torch.equal(saved[name], value)
    assert any(
        not torch.equal(averaged.trained_parameters()[name], value) for name, value in raw.trained_parameters().items()
    )
