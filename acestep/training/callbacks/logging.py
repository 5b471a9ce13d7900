"""What watches a run: losses by noise level, speed, validation history and sampled songs. Changes nothing in it."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.data import LatentBatch
from acestep.files import write_json
from acestep.flow.sampler import Sampler
from acestep.training.flops import utilisation
from acestep.training.sharding import is_sharded

HISTORY = "validation.json"

log = logging.getLogger(__name__)


class Watch(Callback):
    """Every few steps: mean loss since the last time, in all and by noise level, gradient norm, rate, speed, memory.

    Sums stay on the device between two reports, so that watching costs no synchronisation.

    Args:
        every: steps between reports.
        cells: equal parts of [0, 1] in which t is counted.
    """

    def __init__(self, every: int = 50, cells: int = 10) -> None:
        if every < 1 or cells < 1:
            raise ValueError(f"callbacks.watch: every={every}, cells={cells}: need at least 1 of each")
        self.every = every
        self.cells = cells

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse what it cannot watch."""
        if not module.has_noise_levels:
            raise ValueError("callbacks.watch: this task's loss has parts, not noise levels; use callbacks=parts")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin to count."""
        self._restart(trainer, module.device)
        self._reported = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: dict[str, Any], batch: LatentBatch, index: int
    ) -> None:
        """Count, and report if it is time."""
        cell = (outputs["t"] * self.cells).long().clamp(max=self.cells - 1)
        self._add("losses", torch.zeros_like(self._zeros).index_add_(0, cell, outputs["per_song"].float()))
        self._add("songs", torch.bincount(cell, minlength=self.cells))
        for name, songs in outputs["dropped"].items():
            self._add(f"dropped/{name}", songs.sum())
        self._add("frames", batch.frame_mask.sum())
        self._add("flops", outputs["flops"])
        step = trainer.global_step
        if step % self.every == 0 and step > self._reported:
            self._report(trainer, module)
            self._reported = step

    def _report(self, trainer: Trainer, module: LightningModule) -> None:
        seconds = time.perf_counter() - self._since
        sums = {name: trainer.strategy.reduce(part, reduce_op="sum").cpu() for name, part in self._sums.items()}
        songs = sums["songs"]
        values = {
            "train/loss": float(sums["losses"].sum() / songs.sum()),
            "train/gradient_norm": float(module.gradients.norm),
            "train/skipped_steps": float(module.gradients.skipped),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/songs_per_second": float(songs.sum()) / seconds,
            "train/frames_per_second": float(sums["frames"]) / seconds,
            "train/data_wait": (trainer.profiler.seconds - self._waited) / seconds,
            **utilisation(float(sums["flops"]) / seconds / trainer.world_size, module.device),
        }
        for cell in range(self.cells):
            if songs[cell]:
                values[f"train/loss_t{(cell + 0.5) / self.cells:.3f}"] = float(sums["losses"][cell] / songs[cell])
        values |= {f"train/{name}": float(n / songs.sum()) for name, n in sums.items() if name.startswith("dropped/")}
        if module.device.type == "cuda":
            values["train/memory_gib"] = torch.cuda.max_memory_allocated(module.device) / 2**30
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        module.log("loss", values["train/loss"], prog_bar=True, logger=False)
        self._restart(trainer, module.device)

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _restart(self, trainer: Trainer, device: torch.device) -> None:
        self._zeros = torch.zeros(self.cells, device=device)
        self._sums: dict[str, Tensor] = {}
        self._since = time.perf_counter()
        self._waited = trainer.profiler.seconds


class Checkpoints(ModelCheckpoint):
    """Lightning's, but that a run which goes on from a checkpoint also removes that one, once it has newer ones.

    Lightning keeps it for good: of a run that was preempted every day, one more each day.
    """

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        # Nor does it leave its folder: a run that was moved still names the old one.
        return previous != current and Path(self.dirpath).absolute() in Path(previous).absolute().parents


class Progress(RichProgressBar):
    """One bar for the whole run, which Lightning takes for an epoch."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """What stands beside the bar: losses, without Lightning's version number."""
        return {name: value for name, value in super().get_metrics(trainer, module).items() if name != "v_num"}


class History(Callback):
    """Keeps the validation losses of the run in ``validation.json``: the first, the last, and all between, by step."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / HISTORY
        self.losses: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Note this one."""
        if trainer.sanity_checking:
            return
        self.losses[trainer.global_step] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        losses = [values["val/loss"] for values in self.losses.values()]
        if trainer.is_global_zero and losses:
            found = {"val_loss": {"first": losses[0], "last": losses[-1], "best": min(losses)}, "steps": self.losses}
            write_json(self.path, found)

    def state_dict(self) -> dict[str, Any]:
        """The history so far, for a checkpoint."""
        return {"losses": self.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The history of a checkpoint."""
        self.losses = dict(state["losses"])


class SampleSongs(Callback):
    """Every few validations, the first held-out songs' prompts as audio, through ``Pipeline.generate`` like any other.

    It runs inside validation, so that averaged weights, where there are any, make the songs.

    Args:
        folder: where ``step_000500/00.flac`` and so on go.
        every: validations between two times; 0 never.
        songs: how many.
        sampler: how; the checkpoint's own if ``None``.
    """

    def __init__(self, folder: str, every: int = 1, songs: int = 2, sampler: Sampler | None = None) -> None:
        if every < 0 or songs < 1:
            raise ValueError(f"callbacks.sample: every={every}, songs={songs}: need >= 0 (0 is never) and >= 1")
        self.folder = Path(folder)
        self.every = every
        self.songs = songs
        self.sampler = sampler
        self._validations = 0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse a training that makes no songs."""
        if self.every and not module.makes_songs:
            raise ValueError("callbacks.sample: this task makes no songs; use callbacks=parts, or set it to null")

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Generate, if it is time."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.every:
            return
        self._validations += 1
        # A network that is spread over the processes needs them all to make a song.
        if self._validations % self.every or not (trainer.is_global_zero or is_sharded(module.network)):
            return
        data = trainer.datamodule.validation
        wanted = [replace(data[index].song, seed=index) for index in range(min(self.songs, len(data)))]
        # In the run's precision: under an adapter, not all weights have one type.
        try:
            with trainer.precision_plugin.val_step_context():
                songs = list(module.play(wanted, self.sampler))
        except (ValueError, torch.OutOfMemoryError) as error:
            if is_sharded(module.network):  # the others wait for this process
                raise
            log.warning("callbacks.sample: no songs at step %d: %s", trainer.global_step, error)
            return
        for index, audio in enumerate(songs if trainer.is_global_zero else []):
            audio.save(self.folder / f"step_{trainer.global_step:06d}" / f"{index:02d}.flac")
            _hear(trainer, f"samples/{index:02d}", audio)

    def state_dict(self) -> dict[str, Any]:
        """Validations so far, for a checkpoint."""
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Validations so far, from a checkpoint."""
        self._validations = state["validations"]


def _hear(trainer: Trainer, name: str, audio: Audio) -> None:
    """Hand ``audio`` to the loggers that can play it."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_song"):
            logger.log_song(name, audio, trainer.global_step)
