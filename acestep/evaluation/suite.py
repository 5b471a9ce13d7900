"""An evaluation: prompts × sweep points through ``pipeline.generate``, all metrics on the same audio; resumable."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.cache import FeatureCache
from acestep.evaluation.metrics.base import Metric
from acestep.evaluation.prompts import EvaluationPrompt, PromptSource, reference_recordings
from acestep.evaluation.results import HIGHEST, LOWEST, NEITHER, EvaluationInfo, Results, metrics_by_reason
from acestep.evaluation.samples import Clip, ClipStore, OnSong
from acestep.evaluation.scoring import Scoring
from acestep.evaluation.sweep import CEILING, SweepPoint, sweep_points
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.weights.checkpoint import Lengths

log = logging.getLogger(__name__)


GOALS = {True: HIGHEST, False: LOWEST, None: NEITHER}
"""Values of :attr:`.Metric.higher_is_better` as ``summary.json`` has them."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Prompts, sweep points and metrics of an evaluation.

    Attributes:
        prompts: source of the prompts.
        metrics: metrics by the name of their columns; ``None`` switches one off.
        sweep: lists of values over the sampler's fields; see :func:`acestep.evaluation.sweep.sweep_points`.
        reference: folder of recordings, or latent store, that sets are compared with; empty takes the prompts'
            recordings.
        takes: songs for each prompt, from different noise.
        batch_size: songs generated at a time; changes the speed only.
        ceiling: whether to score recordings after encoding and decoding too, as an upper bound.
        available_only: leave out metrics whose weights are missing, with a warning, instead of raising.
        songs_in_report: prompts with players in ``report.html``.
    """

    prompts: PromptSource
    metrics: Mapping[str, Metric | None]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    takes: int = 1
    batch_size: int = 16
    ceiling: bool = True
    available_only: bool = False
    songs_in_report: int = 8

    def __post_init__(self) -> None:
        check_counts(self, takes=1, batch_size=1, songs_in_report=0)

    def __call__(self, pipeline: Pipeline, sampler: Sampler, out: str | Path, ranks: Ranks | None = None) -> Results:
        """Generate the songs that ``out`` lacks and score all of them; writes no report. All ranks return the same.

        Raises:
            MissingWeightsError: a metric's weights are missing, without ``available_only``.
            ValueError: no prompts, or no song could be generated.
        """
        ranks = ranks or Ranks()
        points = sweep_points(sampler, self.sweep)
        metrics, left_out = load_metrics(self.metrics, self.available_only)
        prompts = load_prompts(self.prompts, pipeline.lengths, ranks)
        if not prompts:
            raise ValueError("eval.prompts: holds no prompts; name a folder or a list with at least one song")
        if self.reference:
            references = reference_recordings(self.reference, pipeline, Path(out) / "reference", ranks)
        else:
            references = [prompt.recording for prompt in prompts if prompt.recording]
        store = ClipStore(Path(out) / "clips", pipeline, self.batch_size)
        scoring = Scoring(metrics, FeatureCache(Path(out) / "heard"), references)
        left_out |= scoring.remove_inapplicable(prompts, self.takes)
        log_left_out(left_out)
        scoring.prepare(ranks)
        if not ranks.rank:
            scoring.write_statistics(Path(out) / "statistics")
        clips = self._generate(store, prompts, points, ranks, scoring.extract_from)
        requested = [clip for point in points for clip in clips[point.label]]
        if all(clip.excluded for clip in requested):
            reason = requested[0].excluded
            raise ValueError(f"eval.prompts: none of the {len(requested)} songs could be generated: {reason}")
        started = perf_counter()
        scoring.extract([clip for one in clips.values() for clip in one], ranks)
        ranks.barrier()
        rows = {label: list(scoring.rows(one)) for label, one in clips.items()}
        sets = {label: scoring.sets(one, rows[label]) for label, one in clips.items()}
        log.info("scored %d songs in %.1f s", sum(map(len, rows.values())), perf_counter() - started)
        info = EvaluationInfo(
            weights=pipeline.checkpoint.name,
            fingerprint=store.fingerprint,
            sampler=repr(sampler),
            points={point.label: point.settings for point in points},
            references=len(references),
            **metric_info(metrics, left_out),
        )
        halves = {point.label: scoring.halves(clips[point.label]) for point in points}
        return Results(info, [row for one in rows.values() for row in one], sets, halves)

    def _generate(
        self,
        store: ClipStore,
        prompts: Sequence[EvaluationPrompt],
        points: Sequence[SweepPoint],
        ranks: Ranks,
        on_song: OnSong,
    ) -> dict[str, list[Clip]]:
        """Clips of every sweep point by its label, generated by all ranks together; the ceiling last."""
        planned = {point.label: store.plan(prompts, point, self.takes) for point in points}
        recorded = [prompt for prompt in prompts if prompt.recording]
        if self.ceiling and recorded:
            planned[CEILING] = store.plan(recorded, SweepPoint(CEILING, {}, None))
        started = perf_counter()
        for clips in planned.values():
            store.generate(clips, ranks, on_song)
        log.info("generated %d songs in %.1f s", sum(map(len, planned.values())), perf_counter() - started)
        ranks.barrier()
        return {label: store.with_reasons(clips) for label, clips in planned.items()}


def metric_info(metrics: Mapping[str, Metric], left_out: Mapping[str, str]) -> dict[str, Any]:
    """The fields of :class:`EvaluationInfo` about metrics."""
    used = {name: metric for name, metric in metrics.items() if name not in left_out}
    extractors = {name: metric.extractor for name, metric in used.items()}
    return {
        "left_out": left_out,
        "extractors": {name: f"{one.name} {one.fingerprint[:12]}" for name, one in extractors.items()},
        "chance": {name: dict(metric.chance) for name, metric in used.items()},
        "goals": {name: GOALS[metric.higher_is_better] for name, metric in used.items()},
    }


def log_left_out(left_out: Mapping[str, str]) -> None:
    """A warning for each reason to leave out metrics."""
    for reason, names in metrics_by_reason(left_out).items():
        log.warning("left out: %s: %s", ", ".join(names), reason)


def check_counts(evaluation: object, **minima: int) -> None:
    """Raise ``ValueError`` for a field of ``evaluation`` below its minimum."""
    for name, minimum in minima.items():
        if getattr(evaluation, name) < minimum:
            raise ValueError(f"eval.{name}={getattr(evaluation, name)}: need at least {minimum}")


def load_prompts(source: PromptSource, lengths: Lengths, ranks: Ranks) -> list[EvaluationPrompt]:
    """The prompts; a source that writes files does so on the first rank, before the others read them."""
    if ranks.rank:
        ranks.barrier()
        return source.load(lengths)
    prompts = source.load(lengths)
    ranks.barrier()
    return prompts


def load_metrics(
    metrics: Mapping[str, Metric | None], available_only: bool
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Loaded metrics by name, and the reason for each that is left out. A metric that is ``None`` is switched off."""
    loaded, left_out = {}, {}
    for name, metric in metrics.items():
        if metric is None:
            continue
        try:
            loaded[name] = metric.load()
        except MissingWeightsError as error:
            if not available_only:
                raise MissingWeightsError(f"metrics.{name}: {error}; or add available_only=true") from error
            left_out[name] = str(error)
    return loaded, left_out
