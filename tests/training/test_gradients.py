"""Steps with non-finite gradients are skipped and counted; too many in a row raise an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from training.jobs import curve


class Poison(Callback):
    """Makes one gradient infinite at the steps after ``steps``."""

    def __init__(self, steps: range) -> None:
        self.steps = steps
        self.before: dict[str, torch.Tensor] = {}
        self.moved: list[str] = []

    def on_after_backward(self, trainer, module) -> None:
        if trainer.global_step in self.steps:
            next(p for p in module.network.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")
            self.before = {name: value.detach().clone() for name, value in module.trained_parameters().items()}

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if trainer.global_step - 1 in self.steps:
            self.moved += [
                name for name, value in module.trained_parameters().items() if not torch.equal(value, self.before[name])
            ]


def test_steps_with_non_finite_gradients_are_skipped_and_counted(run, tmp_path: Path) -> None:
    poison = Poison(range(1, 3))
    module = run(tmp_path, steps=4, callbacks=[poison])
    assert poison.before
    assert not poison.moved
    assert module.gradients.skipped == 2
    assert curve(tmp_path, "train/skipped_steps") == {1: 0, 2: 1, 3: 2, 4: 2}
    assert run(tmp_path, steps=4).gradients.skipped == 2  # from the checkpoint
    assert all(value.isfinite().all() for value in module.trained_parameters().values())


def test_too_many_skipped_steps_raise(run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite in 20 steps in a row"):
        run(tmp_path, steps=30, callbacks=[Poison(range(30))])
