"""Callbacks that generate songs during validation: previews of held-out songs, and an evaluation with metrics.

Both run inside validation, so that an exponential moving average of the weights, if there is one, makes the songs.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from acestep.evaluation.results import Results
from acestep.evaluation.suite import Evaluation
from acestep.flow.sampler import Sampler
from acestep.training.dit import DiTModule
from acestep.training.loggers import ResumableLogger
from acestep.training.module import TrainingModule
from acestep.training.sharding import is_sharded

log = logging.getLogger(__name__)


class _EveryFewValidations(Callback):
    """Calls ``run`` at every ``every``-th validation of a training; 0 is never."""

    def __init__(self, folder: str, every: int, sampler: Sampler | None) -> None:
        self.folder = Path(folder)
        self.every = every
        self.sampler = sampler
        self._validations = 0

    @abstractmethod
    def run(self, trainer: Trainer, module: TrainingModule, folder: Path) -> None:
        """Generate songs; ``folder`` is the step's own. All processes call it."""

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.every:
            return
        self._validations += 1
        if self._validations % self.every == 0:
            assert isinstance(module, TrainingModule)
            self.run(trainer, module, self.folder / f"step_{trainer.global_step:06d}")

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._validations = state["validations"]


class SampleSongs(_EveryFewValidations):
    """Generates the first held-out songs from their prompts, as files and for loggers that take audio.

    Args:
        folder: where ``step_000500/00.flac`` and so on are written.
        every: validations between two times; 0 never.
        songs: number of songs.
        sampler: sampler of the DiT; the checkpoint's own if ``None``.
    """

    def __init__(self, folder: str, every: int = 1, songs: int = 2, sampler: Sampler | None = None) -> None:
        if every < 0:
            raise ValueError(f"callbacks.sample.every={every}: need at least 0; 0 generates none")
        if songs < 1:
            raise ValueError(f"callbacks.sample.songs={songs}: need at least 1")
        super().__init__(folder, every, sampler)
        self.songs = songs

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Raise ``ValueError`` for a task that generates no songs."""
        assert isinstance(module, TrainingModule)
        if self.every and not module.can_sample:
            raise ValueError("callbacks.sample: this task makes no songs; use callbacks=no_samples, or set it to null")

    def run(self, trainer: Trainer, module: TrainingModule, folder: Path) -> None:
        # A sharded network needs all processes to generate.
        if not (trainer.is_global_zero or is_sharded(module.network)):
            return
        data = trainer.datamodule.validation  # type: ignore[attr-defined]  # set by Lightning's connector
        songs = [replace(data[index].song, seed=index) for index in range(min(self.songs, len(data)))]
        try:
            # In the run's precision: under an adapter, the weights have several dtypes.
            with trainer.precision_plugin.val_step_context():
                made = list(module.sample(songs, self.sampler))
        except (ValueError, torch.OutOfMemoryError) as error:
            if is_sharded(module.network):  # the other processes wait for this one
                raise
            log.warning("callbacks.sample: no songs at step %d: %s", trainer.global_step, error)
            return
        for index, audio in enumerate(made if trainer.is_global_zero else []):
            audio.save(folder / f"{index:02d}.flac")
            for logger in trainer.loggers:
                if isinstance(logger, ResumableLogger):
                    logger.log_song(f"samples/{index:02d}", audio, trainer.global_step)


class ScoreSongs(_EveryFewValidations):
    """Runs an evaluation; means of its scores and its distances go to the loggers as ``score/...``.

    Args:
        evaluation: prompts and metrics.
        folder: where songs and features go, by step.
        every: validations between two times.
        sampler: sampler of the DiT; the checkpoint's own if ``None``.
    """

    def __init__(self, evaluation: Evaluation, folder: str, every: int = 1, sampler: Sampler | None = None) -> None:
        if every < 1:
            raise ValueError(f"callbacks.score.every={every}: need at least 1; callbacks.score=null switches it off")
        super().__init__(folder, every, sampler)
        self.evaluation = evaluation

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Raise ``ValueError`` for songs that are not of the DiT alone."""
        if not isinstance(module, DiTModule):
            raise ValueError("callbacks.score: supports task=dit only; set it to null, and use evaluate.py")

    def run(self, trainer: Trainer, module: TrainingModule, folder: Path) -> None:
        if not trainer.is_global_zero:
            return
        if is_sharded(module.network):
            raise ValueError("callbacks.score: one process cannot make songs under fsdp2; set callbacks.score=null")
        assert isinstance(module, DiTModule)
        with trainer.precision_plugin.val_step_context():
            results = self.evaluation(module.pipeline, self.sampler or module.pipeline.sampler, folder)
        for logger in trainer.loggers:
            logger.log_metrics(_means(results), step=trainer.global_step)


def _means(results: Results) -> dict[str, float]:
    """The mean over songs of every score, and every distance, as ``score/...``; failed songs are left out."""
    scores: dict[str, list[float]] = defaultdict(list)
    for row in results.rows:
        for name, value in row.scores.items():
            scores[name].append(value)
    means = {f"score/{name}": fmean(values) for name, values in scores.items()}
    for point, metrics in results.sets.items():
        for metric, values in metrics.items():
            means |= {f"score/{point}.{metric}.{name}": value for name, value in values.items()}
    return means
