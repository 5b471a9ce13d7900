"""An evaluation: prompts × cells through ``pipeline.generate``, every metric on the same audio, all of it resumable."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.cache import HearingStore
from acestep.evaluation.metrics.base import Scorer
from acestep.evaluation.prompts import Prompt, PromptSource
from acestep.evaluation.references import reference_recordings
from acestep.evaluation.results import HIGHEST, Results, Setting, by_reason
from acestep.evaluation.samples import Clip, ClipStore, Listen
from acestep.evaluation.scoring import Scoring
from acestep.evaluation.sweep import CEILING, Cell, cells_of
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.weights.checkpoint import Lengths

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
        sweep: lists of values over the sampler's fields; see :func:`acestep.evaluation.sweep.cells_of`.
        reference: folder of recordings, or latent store, that sets are compared with; empty takes the prompts' own
            recordings.
        takes: songs for each prompt, from different noise.
        batch_size: songs made at a time; changes the speed only.
        ceiling: whether the recordings are scored through the autoencoder as well, where prompts have recordings.
        available_only: leave out, and name, metrics whose weights are missing, instead of stopping.
        songs_in_report: prompts with players in ``report.html``.
    """

    prompts: PromptSource
    metrics: Mapping[str, MetricSpec]
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
        """Make what ``out`` does not hold yet, score it, and return everything; reports are written by the caller.

        Every rank gets the same results.
        """
        ranks = ranks or Ranks()
        cells = cells_of(sampler, self.sweep)
        scorers, left_out = load_scorers(self.metrics, self.available_only)
        prompts = load_prompts(self.prompts, pipeline.lengths, ranks)
        if not prompts:
            raise ValueError("eval.prompts: holds no prompts; name a folder or a list with at least one song")
        if self.reference:
            references = reference_recordings(self.reference, pipeline, Path(out) / "reference", ranks)
        else:
            references = [prompt.recording for prompt in prompts if prompt.recording]
        store = ClipStore(Path(out) / "clips", pipeline, self.batch_size)
        scoring = Scoring(scorers, HearingStore(Path(out) / "heard"), references)
        left_out |= scoring.unscorable(prompts, self.takes)
        tell_left_out(left_out)
        scoring.prepare(ranks)
        if not ranks.rank:
            scoring.keep_statistics(Path(out) / "statistics")
        clips = self._clips(store, prompts, cells, ranks, scoring.listen)
        made = [clip for cell in cells for clip in clips[cell.label]]
        if all(clip.excluded for clip in made):
            raise ValueError(f"eval.prompts: none of the {len(made)} songs could be made: {made[0].excluded}")
        started = perf_counter()
        scoring.hear([clip for made in clips.values() for clip in made], ranks)
        ranks.wait()
        rows = {label: list(scoring.rows(made)) for label, made in clips.items()}
        sets = {label: scoring.sets(made, rows[label]) for label, made in clips.items()}
        log.info("scored %d songs in %.1f s", sum(map(len, rows.values())), perf_counter() - started)
        settings = Setting(
            weights=pipeline.checkpoint.name,
            fingerprint=store.fingerprint,
            sampler=repr(sampler),
            cells={cell.label: cell.settings for cell in cells},
            references=len(references),
            **told_of(scorers, left_out),
        )
        halves = {cell.label: scoring.halves(clips[cell.label]) for cell in cells}
        return Results(settings, [row for found in rows.values() for row in found], sets, halves)

    def _clips(
        self, store: ClipStore, prompts: Sequence[Prompt], cells: Sequence[Cell], ranks: Ranks, listen: Listen
    ) -> dict[str, list[Clip]]:
        """Clips of every cell, made by all ranks together and heard by ``listen``; the ceiling last."""
        planned = {cell.label: store.planned(prompts, cell, self.takes) for cell in cells}
        recorded = [prompt for prompt in prompts if prompt.recording]
        if self.ceiling and recorded:
            planned[CEILING] = store.planned(recorded, Cell(CEILING, {}, None))
        started = perf_counter()
        for clips in planned.values():
            store.fill(clips, ranks, listen)
        log.info("made and heard %d songs in %.1f s", sum(map(len, planned.values())), perf_counter() - started)
        ranks.wait()
        return {label: store.settled(clips) for label, clips in planned.items()}


def told_of(scorers: Mapping[str, Scorer], left_out: Mapping[str, str]) -> dict[str, Any]:
    """What a :class:`Setting` says of scorers: who listens, what a guess scores, which values are good, who is out."""
    scorers = {name: scorer for name, scorer in scorers.items() if name not in left_out}
    return {
        "left_out": left_out,
        "ears": {name: f"{scorer.ear.name} {scorer.ear.fingerprint[:12]}" for name, scorer in scorers.items()},
        "chance": {name: dict(getattr(scorer, "chance", {})) for name, scorer in scorers.items()},
        "goals": {name: getattr(scorer, "goal", HIGHEST) for name, scorer in scorers.items()},
    }


def tell_left_out(left_out: Mapping[str, str]) -> None:
    """A line for each reason why metrics are left out."""
    for reason, names in by_reason(left_out).items():
        log.warning("left out: %s: %s", ", ".join(names), reason)


def check_counts(evaluation: object, **least: int) -> None:
    """Refuse a count of ``evaluation`` that is below its least."""
    for name, lowest in least.items():
        if getattr(evaluation, name) < lowest:
            raise ValueError(f"eval.{name}={getattr(evaluation, name)}: need at least {lowest}")


def load_prompts(source: PromptSource, lengths: Lengths, ranks: Ranks) -> list[Prompt]:
    """The prompts; a source that writes files does so on the first rank, and the others find them there."""
    if ranks.rank:
        ranks.wait()
        return source.load(lengths)
    prompts = source.load(lengths)
    ranks.wait()
    return prompts


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
                raise MissingWeightsError(f"metrics.{name}: {error}; or add available_only=true") from error
            left_out[name] = str(error)
    return scorers, left_out
