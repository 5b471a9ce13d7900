"""How near a reconstruction is to its original, by measures that name what is lost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.data.encode import fitted
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.cache import HearingStore
from acestep.evaluation.prompts import PromptSource
from acestep.evaluation.results import Results, Setting, paired
from acestep.evaluation.samples import Clip, ClipStore, begun
from acestep.evaluation.scoring import Scoring
from acestep.evaluation.suite import check_counts, load_prompts, load_scorers, tell_left_out, told_of
from acestep.evaluation.sweep import Cell
from acestep.flow.sampler import Sampler
from acestep.models.reconstruction import mel_distance, stereo_distance, sum_difference
from acestep.pipeline.pipeline import Pipeline

FLOOR = 1e-8
ORIGINAL, REBUILT = "original", "rebuilt"

Samples = Float[Tensor, "a s"]


def reconstruction(made: Samples, wanted: Samples, sample_rate: int) -> dict[str, float]:
    """Every measure of one song, as numbers: higher is better for ``si_sdr_db``, lower for all others."""
    found = {"si_sdr_db": si_sdr(made, wanted), "level_error_db": level_error(made, wanted)}
    distances = stereo_distance(made[None], wanted[None]) | {"mel": mel_distance(made[None], wanted[None], sample_rate)}
    found |= {f"{name}_distance": float(value) for name, value in distances.items()}
    return found | stereo_errors(made, wanted) if len(made) == 2 else found


def si_sdr(made: Samples, wanted: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, arXiv 1811.02508), mean of channels, in dB."""
    made, wanted = (x.double() - x.double().mean(-1, keepdim=True) for x in (made, wanted))
    scale = (made * wanted).sum(-1, keepdim=True) / wanted.square().sum(-1, keepdim=True).clamp(min=FLOOR)
    target = scale * wanted
    ratio = target.square().sum(-1).clamp(min=FLOOR) / (made - target).square().sum(-1).clamp(min=FLOOR)
    return float((10 * ratio.log10()).mean())


def level_error(made: Samples, wanted: Samples) -> float:
    """Difference of the root mean squares, absolute, in dB."""
    return abs(_level(made) - _level(wanted))


def stereo_errors(made: Samples, wanted: Samples) -> dict[str, float]:
    """Absolute differences, in dB, of the balance (left over right) and the width (difference over sum)."""
    middles, sides = zip(*(sum_difference(samples[None])[0] for samples in (made, wanted)), strict=True)
    pairs = {"balance_error_db": [(x[0], x[1]) for x in (made, wanted)]}
    pairs["width_error_db"] = list(zip(sides, middles, strict=True))
    ratios = {name: [_level(one) - _level(other) for one, other in both] for name, both in pairs.items()}
    return {name: abs(one - other) for name, (one, other) in ratios.items()}


def reconstruct(pipeline: Pipeline, songs: Iterable[Audio]) -> Iterator[dict[str, float]]:
    """Every measure of each song's round trip through the autoencoder, and how long that took beside the music."""
    autoencoder = pipeline.autoencoder
    for song in songs:
        started = time.perf_counter()
        made = pipeline.decode(pipeline.encode(song).mean)[0].cpu()
        taken = time.perf_counter() - started
        wanted = fitted(song, autoencoder)[:, : made.shape[-1]].to(made)
        values = reconstruction(made[:, : wanted.shape[-1]], wanted, autoencoder.sample_rate)
        yield values | {"seconds": song.seconds, "seconds_per_second": taken / song.seconds}


@dataclass(frozen=True, kw_only=True)
class ReconstructionStudy:
    """Recordings and their round trips through the autoencoder: how near they come, and what is still heard in them.

    Attributes:
        prompts: songs with recordings, which no autoencoder should have seen.
        metrics: as in :class:`Evaluation`; those that judge sets compare both sets with the recordings.
        songs_in_report: recordings with players in the report.
        available_only: leave out, and name, metrics whose weights are missing.
    """

    prompts: PromptSource
    metrics: Mapping[str, Any]
    songs_in_report: int = 8
    available_only: bool = False

    def __post_init__(self) -> None:
        check_counts(self, songs_in_report=0)

    def __call__(self, pipeline: Pipeline, sampler: Sampler, out: str | Path, ranks: Ranks | None = None) -> Results:
        """As :meth:`Evaluation.__call__`; the summary's ``reconstruction`` is this study's own. Samples nothing."""
        ranks = ranks or Ranks()
        scorers, left_out = load_scorers(self.metrics, self.available_only)
        prompts = [prompt for prompt in load_prompts(self.prompts, pipeline.lengths, ranks) if prompt.recording]
        if not prompts:
            raise ValueError("eval.prompts: holds no recordings; name a folder with at least one")
        store = ClipStore(Path(out) / "clips", pipeline, batch_size=1)
        clips = store.planned(prompts, Cell(REBUILT, {}, None))
        store.fill(clips, ranks)
        ranks.wait()
        clips = [clip for clip in store.settled(clips) if not clip.excluded]
        if not clips:
            raise ValueError(f"eval.prompts: none of the {len(prompts)} recordings could be coded; name others")
        recordings = [clip.prompt.recording for clip in clips if clip.prompt.recording]
        sets = {ORIGINAL: [_as_it_is(clip) for clip in clips], REBUILT: clips}
        scoring = Scoring(scorers, HearingStore(Path(out) / "heard"), recordings)
        left_out |= scoring.unscorable(prompts)
        tell_left_out(left_out)
        scoring.prepare(ranks)
        scoring.hear([clip for made in sets.values() for clip in made], ranks)
        ranks.wait()
        rows = {label: list(scoring.rows(made)) for label, made in sets.items()}
        measured = list(reconstruct(pipeline, map(begun, clips)))
        rows[REBUILT] = [
            replace(row, scores=row.scores | _named(song)) for row, song in zip(rows[REBUILT], measured, strict=True)
        ]
        setting = Setting(
            weights=pipeline.checkpoint.name,
            fingerprint=store.fingerprint,
            sampler="none: recordings through the autoencoder",
            cells={label: {"song": label} for label in sets},
            references=len(recordings),
            **told_of(scorers, left_out),
        )
        distances = {label: scoring.sets(made, rows[label]) for label, made in sets.items()}
        results = Results(setting, [row for found in rows.values() for row in found], distances)
        return replace(results, blocks={"reconstruction": _summary(results, measured)})


def _named(song: Mapping[str, float]) -> dict[str, float]:
    """A song's measures as columns; how long it took is no property of the song."""
    return {f"near.{name}": value for name, value in song.items() if not name.startswith("seconds")}


def _as_it_is(clip: Clip) -> Clip:
    assert clip.prompt.recording is not None
    return replace(clip, cell=Cell(ORIGINAL, {}, None), key=f"{clip.key} as it is", path=clip.prompt.recording)


def _summary(results: Results, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means of the measures, and of each score what is left of it: ``share`` of the originals', and the difference."""
    kept = {}
    for column in results.columns:
        before, after = (results.values(column, label) for label in (ORIGINAL, REBUILT))
        both = sorted(before.keys() & after.keys())
        if both:
            one, other = [after[name] for name in both], [before[name] for name in both]
            rebuilt, original = sum(one) / len(one), sum(other) / len(other)
            share = rebuilt / original if original else None
            change = paired(one, other)["ci95"]
            kept[column] = {"original": original, "rebuilt": rebuilt, "share": share, "difference_ci95": change}
    means = {name: sum(song[name] for song in measured) / len(measured) for name in measured[0]}
    return {"n": len(measured), **means, "sets": results.sets.get(REBUILT, {}), "kept": kept}


def _level(samples: Tensor) -> float:
    return float(10 * samples.double().square().mean().clamp(min=1e-10).log10())
