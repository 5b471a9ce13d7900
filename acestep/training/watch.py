"""What watches trainings whose loss has parts: each part's mean, gradient norm, rate and speed."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class WatchParts(Callback):
    """Every few steps: mean loss since the last time, in all and by part. Sums stay on the device between reports.

    Args:
        every: steps between reports.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"callbacks.watch.every={every}: need at least 1")
        self.every = every

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse what it cannot watch."""
        if module.has_noise_levels:
            raise ValueError("callbacks.watch: this task's loss has noise levels, not parts; use callbacks=default")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin to count."""
        self._restart()
        self._reported = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: dict[str, Any], batch: Any, index: int
    ) -> None:
        """Count, and report if it is time."""
        self._examples += outputs["examples"] * trainer.world_size
        for name, (total, count) in outputs["parts"].items():
            before = self._sums.get(name, torch.zeros(2, device=total.device))
            self._sums[name] = before + torch.stack([total, count])
        step = trainer.global_step
        if step % self.every == 0 and step > self._reported:
            self._report(trainer, module)
            self._reported = step

    def _report(self, trainer: Trainer, module: LightningModule) -> None:
        seconds = time.perf_counter() - self._since
        values = {
            "train/gradient_norm": float(module.gradients.norm),
            "train/skipped_steps": float(module.gradients.skipped),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/examples_per_second": self._examples / seconds,
        }
        for name, sums in self._sums.items():
            total, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            if count:
                values[f"train/{name}"] = total / count
        if module.device.type == "cuda":
            values["train/memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if "train/loss" in values:
            module.log("loss", values["train/loss"], prog_bar=True, logger=False)
        self._restart()

    def _restart(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._examples = 0
        self._since = time.perf_counter()
