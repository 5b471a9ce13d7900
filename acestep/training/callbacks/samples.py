"""Songs of held-out prompts, scored in the midst of training by the same evaluation that judges the result."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from acestep.evaluation.results import Results
from acestep.evaluation.suite import Evaluation
from acestep.flow.sampler import Sampler
from acestep.training.sharding import is_sharded


class ScoreSongs(Callback):
    """Every few validations, one evaluation; means of its scores and its distances go to the loggers.

    It runs inside validation, so that averaged weights, where there are any, make the songs.

    Args:
        evaluation: prompts and metrics.
        folder: where songs and what was heard of them go, by step.
        every: validations between two times.
        sampler: how songs are made; the checkpoint's own if ``None``.
    """

    def __init__(self, evaluation: Evaluation, folder: str, every: int = 1, sampler: Sampler | None = None) -> None:
        if every < 1:
            raise ValueError(f"callbacks.score.every={every}: need at least 1; callbacks.score=null switches it off")
        self.evaluation = evaluation
        self.folder = Path(folder)
        self.every = every
        self.sampler = sampler
        self._validations = 0

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Refuse songs that are not the DiT's alone."""
        if not module.has_noise_levels:
            raise ValueError("callbacks.score: judges task=dit alone; set it to null, and ask evaluate.py")

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate, if it is time."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if self._validations % self.every or not trainer.is_global_zero:
            return
        if is_sharded(module.network):
            raise ValueError("callbacks.score: one process cannot make songs under fsdp2; set callbacks.score=null")
        pipeline = module.pipeline
        out = self.folder / f"step_{trainer.global_step:06d}"
        with trainer.precision_plugin.val_step_context():
            values = means(self.evaluation(pipeline, self.sampler or pipeline.sampler, out))
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Validations so far, for a checkpoint."""
        return {"validations": self._validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Validations so far, from a checkpoint."""
        self._validations = state["validations"]


def means(results: Results) -> dict[str, float]:
    """The mean of every score over the songs that could be made, and every distance, as ``score/...``."""
    scores: dict[str, list[float]] = defaultdict(list)
    for row in results.rows:
        for name, value in row.scores.items():
            scores[name].append(value)
    values = {f"score/{name}": fmean(found) for name, found in scores.items()}
    for cell, distances in results.sets.items():
        values |= {f"score/{cell}.{name}": distance for name, distance in distances.items()}
    return values
