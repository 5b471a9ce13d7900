"""An exponential moving average of what trains."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class EMA(Callback):
    """Averages trained parameters in fp32; validation, samples and the result use the average.

    Lightning's ``WeightAveraging`` copies the whole module, the frozen parts included, and saves them all; this
    follows what trains, and restores strictly.

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
        """Begin at the present weights, unless a checkpoint has brought an average."""
        trained = module.trained()
        if not self.average:
            self.average = {name: value.detach().float().clone() for name, value in trained.items()}
            self._step = trainer.global_step
        if self.average.keys() != trained.keys():
            raise ValueError(
                "run.dir: its checkpoint averages other parameters than this config trains; start in a new one"
            )
        self.average = {name: value.to(trained[name].device) for name, value in self.average.items()}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """One step of the average, after each step of the optimiser."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self._step) / (10 + self._step)) if self.warmup else self.decay
        current = [value.detach().float() for value in module.trained().values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1.0 - decay)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Validate the average."""
        self.swap_in(module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Go on with the raw weights."""
        self.swap_out(module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The result is the average. The last checkpoint, written before, holds the raw weights too."""
        self.swap_in(module)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint written while the average is in place still holds the raw weights."""
        checkpoint["state_dict"].update(self._raw)

    def swap_in(self, module: LightningModule) -> None:
        """Put the average into the module; the raw weights are kept aside."""
        trained = module.trained()
        if not self.average or self._raw:
            return
        self._raw = {name: value.detach().clone() for name, value in trained.items()}
        for name, value in trained.items():
            value.data.copy_(self.average[name])

    def swap_out(self, module: LightningModule) -> None:
        """Put the raw weights back."""
        for name, value in module.trained().items():
            if name in self._raw:
                value.data.copy_(self._raw[name])
        self._raw = {}

    def state_dict(self) -> dict[str, Any]:
        """Average and step, for a checkpoint."""
        return {"average": self.average, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Average and step of a checkpoint."""
        self.average, self._step = dict(state["average"]), state["step"]
