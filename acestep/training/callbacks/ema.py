"""Exponential moving average of the trained parameters."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from acestep.training.module import TrainingModule


class EMA(Callback):
    """Averages trained parameters in fp32; validation, samples and the result use the average.

    Lightning's ``WeightAveraging`` copies and saves the whole module, frozen parts included; this averages what trains,
    and restores strictly.

    Args:
        decay: share of the old average that a step keeps, at most.
        warmup: the decay at step ``s`` is at most ``(1 + s) / (10 + s)``, so that early averages forget the start.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"callbacks.ema.decay={decay:g}: need 0 <= decay < 1")
        self.decay = decay
        self.warmup = warmup
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] = {}
        self._step = 0

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start at the present weights, unless a checkpoint has restored an average."""
        trained = _trained(module)
        if not self.average:
            self.average = {name: value.detach().float().clone() for name, value in trained.items()}
            self._step = trainer.global_step
        if self.average.keys() != trained.keys():
            raise ValueError(
                "run.dir: its checkpoint averages other parameters than this config trains; start in a new one"
            )
        self.average = {name: value.to(trained[name].device) for name, value in self.average.items()}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Update the average after each optimiser step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step)) if self.warmup else self.decay
        current = [value.detach().float() for value in _trained(module).values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1.0 - decay)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.swap_in(module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.swap_out(module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Leave the average in the module, to be exported. The last checkpoint has the raw weights too."""
        self.swap_in(module)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the raw weights, also while the average is in the module."""
        checkpoint["state_dict"].update(self._raw)

    def swap_in(self, module: LightningModule) -> None:
        """Copy the average into the module; the raw weights are kept for ``swap_out``."""
        trained = _trained(module)
        if not self.average or self._raw:
            return
        self._raw = {name: value.detach().clone() for name, value in trained.items()}
        for name, value in trained.items():
            value.data.copy_(self.average[name])

    def swap_out(self, module: LightningModule) -> None:
        """Copy the raw weights back."""
        for name, value in _trained(module).items():
            if name in self._raw:
                value.data.copy_(self._raw[name])
        self._raw = {}

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self._step = dict(state["average"]), state["step"]


def _trained(module: LightningModule) -> dict[str, torch.nn.Parameter]:
    assert isinstance(module, TrainingModule)
    return module.trained_parameters()
