"""An evaluation: prompts × cells through ``pipeline.generate``, every metric on the same audio, all of it resumable."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from acestep.evaluation.cells import CEILING, Cell, cells_of
from acestep.evaluation.clips import Clip, ClipStore
from acestep.evaluation.embedders import MissingWeightsError
from acestep.evaluation.hearing import Ear, Heard, HearingStore
from acestep.evaluation.metrics import Scorer
from acestep.evaluation.prompts import Prompt, PromptSource
from acestep.evaluation.results import Results, Row, Setting
from acestep.flow.sampler import Sampler
from acestep.pipeline import Pipeline

log = logging.getLogger(__name__)


class MetricSpec(Protocol):
    """Configuration of a metric."""

    def load(self) -> Scorer:
        """The scorer; :class:`MissingWeightsError` where its weights cannot be had."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What to ask, under which settings, and how to score.

    Attributes:
        prompts: where prompts come from.
        metrics: metric by the name that its columns get.
        sweep: lists of values over the sampler's fields; see :func:`acestep.evaluation.cells.cells_of`.
        takes: songs for each prompt, from different noise.
        batch_size: songs made at a time; changes the speed only.
        ceiling: whether the recordings are scored through the autoencoder as well, where prompts have recordings.
        available_only: leave out, and name, metrics whose weights are missing, instead of stopping.
        songs_in_report: prompts with players in ``report.html``.
    """

    prompts: PromptSource
    metrics: Mapping[str, MetricSpec]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    takes: int = 1
    batch_size: int = 16
    ceiling: bool = True
    available_only: bool = False
    songs_in_report: int = 8

    def __post_init__(self) -> None:
        for name in ("takes", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"eval.{name}={getattr(self, name)}: need at least 1")

    def __call__(self, pipeline: Pipeline, sampler: Sampler, out: str | Path) -> Results:
        """Make what ``out`` does not hold yet, score it, and return everything; reports are written by the caller."""
        cells = cells_of(sampler, self.sweep)
        scorers, left_out = load_scorers(self.metrics, self.available_only)
        prompts = self.prompts.load(pipeline.lengths)
        store = ClipStore(Path(out) / "clips", pipeline, self.batch_size)
        recorded = [prompt for prompt in prompts if prompt.recording]
        clips = {cell.label: store.make(prompts, cell, self.takes) for cell in cells}
        if self.ceiling and recorded:
            ceiling = Cell(CEILING, {}, None)
            clips[CEILING] = store.make(recorded, ceiling)
        scoring = Scoring(scorers, HearingStore(Path(out) / "heard"), [prompt.recording for prompt in recorded])
        settings = Setting(
            weights=pipeline.checkpoint.name,
            fingerprint=store.fingerprint,
            sampler=repr(sampler),
            cells={cell.label: cell.settings for cell in cells},
            ears={name: f"{scorer.ear.name} {scorer.ear.fingerprint[:12]}" for name, scorer in scorers.items()},
            chance={name: dict(getattr(scorer, "chance", {})) for name, scorer in scorers.items()},
            left_out={**left_out, **scoring.unscorable(prompts)},
        )
        scoring.check()
        rows = [row for made in clips.values() for row in scoring.rows(made)]
        sets = {label: scoring.sets(made) for label, made in clips.items()}
        return Results(settings, rows, sets)


def load_scorers(
    specs: Mapping[str, MetricSpec | None], available_only: bool
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Scorers by name, and why the others are left out. A metric set to ``None`` is switched off without a word."""
    scorers, left_out = {}, {}
    for name, spec in specs.items():
        if spec is None:
            continue
        try:
            scorers[name] = spec.load()
        except MissingWeightsError as error:
            if not available_only:
                raise MissingWeightsError(f"eval.metrics.{name}: {error}; or add eval.available_only=true") from error
            log.warning("metric %s is left out: %s", name, error)
            left_out[name] = str(error)
    return scorers, left_out


class Scoring:
    """All metrics over clips, each clip heard once by each ear."""

    def __init__(self, scorers: Mapping[str, Scorer], store: HearingStore, references: Sequence[Path]) -> None:
        self.songwise = {name: scorer for name, scorer in scorers.items() if hasattr(scorer, "score")}
        self.setwise = {name: scorer for name, scorer in scorers.items() if hasattr(scorer, "distance")}
        self.store = store
        self.references = references
        self._heard: dict[tuple[str, Path], Heard] = {}

    def unscorable(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Metrics that find nothing to compare with in these prompts, and why."""
        reasons = {
            name: "no prompt holds what it compares with"
            for name, scorer in self.songwise.items()
            if not any(scorer.applies(prompt) for prompt in prompts)
        }
        for name, scorer in self.setwise.items():
            if not getattr(scorer, "statistics", "") and len(self.references) < 2:
                reasons[name] = "fewer than 2 prompts have recordings, and no reference statistics are given"
        self.songwise = {name: scorer for name, scorer in self.songwise.items() if name not in reasons}
        self.setwise = {name: scorer for name, scorer in self.setwise.items() if name not in reasons}
        return reasons

    def check(self) -> None:
        """Let every metric refuse itself, on the reference recordings."""
        for scorer in self.songwise.values():
            scorer.check([self._hear(scorer.ear, path) for path in self.references])

    def rows(self, clips: Sequence[Clip]) -> Iterator[Row]:
        """One row for each clip: its scores, and its scores against the words of other prompts."""
        made = [clip for clip in clips if not clip.excluded]
        scores: dict[str, dict[str, float]] = {clip.key: {} for clip in made}
        shuffled: dict[str, dict[str, float]] = {clip.key: {} for clip in made}
        for name, scorer in self.songwise.items():
            scored = [clip for clip in made if scorer.applies(clip.prompt)]
            heard = [self._hear(scorer.ear, clip.path) for clip in scored]
            for clip, one in zip(scored, heard, strict=True):
                scores[clip.key] |= _named(name, scorer.score(one, clip.prompt))
            for clip, one, others in zip(scored, heard, _others([clip.prompt for clip in scored]), strict=True):
                shuffled[clip.key] |= _named(name, _mean([scorer.score(one, other) for other in others]))
        for clip in clips:
            yield Row(
                prompt=clip.prompt,
                take=clip.take,
                cell=clip.cell.label,
                path=None if clip.excluded else clip.path,
                excluded=clip.excluded,
                scores=scores.get(clip.key, {}),
                shuffled=shuffled.get(clip.key, {}),
            )

    def sets(self, clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
        """Distances of all clips together to the reference recordings, by metric."""
        made = [clip.path for clip in clips if not clip.excluded]
        if len(made) < 2:
            return {}
        return {
            name: scorer.distance(
                [self._hear(scorer.ear, path) for path in made],
                [self._hear(scorer.ear, path) for path in self.references],
                same_songs=clips[0].cell.sampler is None,
            )
            for name, scorer in self.setwise.items()
        }

    def _hear(self, ear: Ear, recording: Path) -> Heard:
        key = ear.fingerprint, recording
        if key not in self._heard:
            self._heard[key] = self.store.hear(ear, recording)
        return self._heard[key]


SHUFFLES = 4
"""Other prompts that each song is scored against for the shuffled control."""


def _others(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """For each song, prompts of other songs: those ahead of it by fixed strides, spread over the list."""
    n = len(prompts)
    strides = sorted({max(1, round(n * (k + 1) / (SHUFFLES + 1))) for k in range(SHUFFLES)})
    picked = [[prompts[(i + stride) % n] for stride in strides] for i in range(n)]
    return [[other for other in others if other.id != own.id] for own, others in zip(prompts, picked, strict=True)]


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]} if scores else {}


def _named(metric: str, scores: Mapping[str, float]) -> dict[str, float]:
    return {f"{metric}.{name}": value for name, value in scores.items()}
