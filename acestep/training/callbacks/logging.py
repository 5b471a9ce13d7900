"""Callbacks that log a run: training metrics, validation history and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from acestep.files import write_json
from acestep.training.flops import utilisation
from acestep.training.module import TrainingModule

HISTORY = "validation.json"


class TrainingMonitor(Callback):
    """Logs losses, gradient norm, learning rate, throughput and peak memory, as means since the last report.

    Losses are reported by noise level, as ``train/loss_t0.050`` and so on, or for other tasks by part. Sums stay on the
    device between two reports, so that a step needs no synchronisation.

    Args:
        every: optimiser steps between two reports.
        cells: number of equal bins of the time t in [0, 1].
    """

    def __init__(self, every: int = 50, cells: int = 10) -> None:
        if every < 1 or cells < 1:
            raise ValueError(f"callbacks.monitor: every={every}, cells={cells}: need at least 1 of each")
        self.every = every
        self.cells = cells

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._restart(trainer)
        self._reported = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        sums = self._sums_by_noise_level(outputs, batch) if module.has_noise_levels else _sums_by_part(outputs)
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._examples += len(batch) * trainer.world_size
        step = trainer.global_step
        if step % self.every == 0 and step > self._reported:
            self._report(trainer, module)
            self._reported = step

    def _report(self, trainer: Trainer, module: TrainingModule) -> None:
        seconds = time.perf_counter() - self._since
        sums = {name: trainer.strategy.reduce(value, reduce_op="sum").cpu() for name, value in self._sums.items()}
        values = {
            "train/gradient_norm": float(module.gradients.norm),
            "train/skipped_steps": float(module.gradients.skipped),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        if module.has_noise_levels:
            waited = trainer.profiler.seconds - self._waited  # type: ignore[attr-defined]  # set by TrainerConfig
            values["train/data_wait"] = waited / seconds
            values |= self._means_by_noise_level(sums, seconds)
            values |= utilisation(float(sums["flops"]) / seconds / trainer.world_size, module.device)
        else:
            pairs = {name: pair.tolist() for name, pair in sums.items()}
            values |= {f"train/{name}": total / count for name, (total, count) in pairs.items() if count}
            values["train/examples_per_second"] = self._examples / seconds
        if module.device.type == "cuda":
            values["train/memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        if "train/loss" in values:
            module.log("loss", values["train/loss"], prog_bar=True, logger=False)
        self._restart(trainer)

    def _sums_by_noise_level(self, outputs: Mapping[str, Any], batch: Any) -> dict[str, Tensor]:
        cell = (outputs["t"] * self.cells).long().clamp(max=self.cells - 1)
        losses = torch.zeros(self.cells, device=cell.device).index_add_(0, cell, outputs["per_song"].float())
        dropped = {f"dropped/{name}": songs.sum() for name, songs in outputs["dropped"].items()}
        return dropped | {
            "losses": losses,
            "songs": torch.bincount(cell, minlength=self.cells),
            "frames": batch.frame_mask.sum(),
            "flops": outputs["flops"],
        }

    def _means_by_noise_level(self, sums: Mapping[str, Tensor], seconds: float) -> dict[str, float]:
        songs, losses = sums["songs"], sums["losses"]
        values = {
            "train/loss": float(losses.sum() / songs.sum()),
            "train/songs_per_second": float(songs.sum()) / seconds,
            "train/frames_per_second": float(sums["frames"]) / seconds,
        }
        for cell in range(self.cells):
            if songs[cell]:
                values[f"train/loss_t{(cell + 0.5) / self.cells:.3f}"] = float(losses[cell] / songs[cell])
        dropped = {name: float(n / songs.sum()) for name, n in sums.items() if name.startswith("dropped/")}
        return values | {f"train/{name}": rate for name, rate in dropped.items()}

    def _restart(self, trainer: Trainer) -> None:
        self._sums: dict[str, Tensor] = {}
        self._examples = 0
        self._since = time.perf_counter()
        self._waited = trainer.profiler.seconds  # type: ignore[attr-defined]  # set by TrainerConfig


def _sums_by_part(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Loss total and count of each part, (2,) float32."""
    return {name: torch.stack(pair).float() for name, pair in outputs["parts"].items()}


class Progress(RichProgressBar):
    """One bar for the whole run, which is one epoch to Lightning."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics beside the bar, without Lightning's version number."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class History(Callback):
    """Writes the run's validation losses to ``FOLDER/validation.json``: first, last, best, and all by step.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / HISTORY
        self.losses: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.losses[trainer.global_step] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        losses = [values["val/loss"] for values in self.losses.values()]
        if trainer.is_global_zero and losses:
            summary = {"first": losses[0], "last": losses[-1], "best": min(losses)}
            write_json(self.path, {"val_loss": summary, "steps": self.losses})

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = dict(state["losses"])
