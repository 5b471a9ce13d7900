"""Evaluation of an autoencoder: reconstruction metrics, and every other metric on originals and reconstructions."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.data.encode import convert_audio
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.cache import FeatureCache
from acestep.evaluation.prompts import PromptSource
from acestep.evaluation.results import EvaluationInfo, Results
from acestep.evaluation.samples import Clip, ClipStore, recording_excerpt
from acestep.evaluation.scoring import Scoring
from acestep.evaluation.statistics import paired_test
from acestep.evaluation.suite import check_counts, load_metrics, load_prompts, log_left_out, metric_info
from acestep.evaluation.sweep import SweepPoint
from acestep.flow.sampler import Sampler
from acestep.models.reconstruction import mel_distance, stereo_distance, sum_difference
from acestep.pipeline.pipeline import Pipeline

EPSILON = 1e-8
ORIGINAL, REBUILT = "original", "rebuilt"

Samples = Float[Tensor, "a s"]


def reconstruction_metrics(prediction: Samples, target: Samples, sample_rate: int) -> dict[str, float]:
    """All metrics of one song; higher is better for ``si_sdr_db``, lower for all others."""
    distances = stereo_distance(prediction[None], target[None])
    distances |= {"mel": mel_distance(prediction[None], target[None], sample_rate)}
    values = {"si_sdr_db": si_sdr(prediction, target), "level_error_db": level_error(prediction, target)}
    values |= {f"{name}_distance": float(value) for name, value in distances.items()}
    return values | stereo_errors(prediction, target) if len(prediction) == 2 else values


def si_sdr(prediction: Samples, target: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, arXiv 1811.02508), mean of channels, in dB."""
    prediction, target = (x.double() - x.double().mean(-1, keepdim=True) for x in (prediction, target))
    energy = target.square().sum(-1, keepdim=True).clamp(min=EPSILON)
    scaled = (prediction * target).sum(-1, keepdim=True) / energy * target
    distortion = (prediction - scaled).square().sum(-1).clamp(min=EPSILON)
    ratio = scaled.square().sum(-1).clamp(min=EPSILON) / distortion
    return float((10 * ratio.log10()).mean())


def level_error(prediction: Samples, target: Samples) -> float:
    """Absolute difference of the root mean squares, in dB."""
    return abs(_rms_db(prediction) - _rms_db(target))


def stereo_errors(prediction: Samples, target: Samples) -> dict[str, float]:
    """Absolute differences, in dB, of the balance (left over right) and the width (side over mid)."""
    pairs = {
        "balance": (prediction, target),
        "width": [sum_difference(x[None])[0].flip(0) for x in (prediction, target)],
    }
    differences = {name: [_rms_db(x[0]) - _rms_db(x[1]) for x in pair] for name, pair in pairs.items()}
    return {f"{name}_error_db": abs(one - other) for name, (one, other) in differences.items()}


def round_trip_metrics(pipeline: Pipeline, songs: Iterable[Audio]) -> Iterator[dict[str, float]]:
    """Metrics of each song's round trip through the autoencoder, its duration, and the time taken per second of it."""
    autoencoder = pipeline.autoencoder
    for song in songs:
        started = time.perf_counter()
        prediction = pipeline.decode(pipeline.encode(song).mean)[0].cpu()
        taken = time.perf_counter() - started
        target = convert_audio(song, autoencoder)[:, : prediction.shape[-1]].to(prediction)
        values = reconstruction_metrics(prediction[:, : target.shape[-1]], target, autoencoder.sample_rate)
        yield values | {"seconds": song.seconds, "seconds_per_second": taken / song.seconds}


@dataclass(frozen=True, kw_only=True)
class ReconstructionStudy:
    """Recordings and their round trips through the autoencoder: reconstruction metrics, and all scores of both.

    Attributes:
        prompts: songs with recordings that no autoencoder was trained on.
        metrics: as in :class:`Evaluation`; set metrics compare both sets with the recordings.
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
        """As :meth:`Evaluation.__call__`; the summary has a further part, ``reconstruction``. Generates no songs."""
        ranks = ranks or Ranks()
        metrics, left_out = load_metrics(self.metrics, self.available_only)
        prompts = [prompt for prompt in load_prompts(self.prompts, pipeline.lengths, ranks) if prompt.recording]
        if not prompts:
            raise ValueError("eval.prompts: holds no recordings; name a folder with at least one")
        store = ClipStore(Path(out) / "clips", pipeline, batch_size=1)
        clips = store.plan(prompts, SweepPoint(REBUILT, {}, None))
        store.generate(clips, ranks)
        ranks.barrier()
        clips = [clip for clip in store.with_reasons(clips) if not clip.excluded]
        if not clips:
            raise ValueError(f"eval.prompts: none of the {len(prompts)} recordings could be coded; name others")
        recordings = [clip.prompt.recording for clip in clips if clip.prompt.recording]
        clip_sets = {ORIGINAL: [_original(clip) for clip in clips], REBUILT: clips}
        scoring = Scoring(metrics, FeatureCache(Path(out) / "heard"), recordings)
        left_out |= scoring.remove_inapplicable(prompts)
        log_left_out(left_out)
        scoring.prepare(ranks)
        scoring.extract([clip for one in clip_sets.values() for clip in one], ranks)
        ranks.barrier()
        rows = {label: list(scoring.rows(one)) for label, one in clip_sets.items()}
        measured = list(round_trip_metrics(pipeline, map(recording_excerpt, clips)))
        rows[REBUILT] = [
            replace(row, scores={**row.scores, **_near_scores(values)})
            for row, values in zip(rows[REBUILT], measured, strict=True)
        ]
        info = EvaluationInfo(
            weights=pipeline.checkpoint.name,
            fingerprint=store.fingerprint,
            sampler="none: recordings through the autoencoder",
            points={label: {"song": label} for label in clip_sets},
            references=len(recordings),
            **metric_info(metrics, left_out),
        )
        sets = {label: scoring.sets(one, rows[label]) for label, one in clip_sets.items()}
        results = Results(info, [row for one in rows.values() for row in one], sets)
        return replace(results, extra={"reconstruction": _summary(results, measured)})


def _near_scores(values: Mapping[str, float]) -> dict[str, float]:
    """Reconstruction metrics as score columns, without durations and times."""
    return {f"near.{name}": value for name, value in values.items() if not name.startswith("seconds")}


def _original(clip: Clip) -> Clip:
    """The recording of a reconstruction, as a clip."""
    assert clip.prompt.recording is not None
    return replace(clip, point=SweepPoint(ORIGINAL, {}, None), key=f"{clip.key} as it is", path=clip.prompt.recording)


def _summary(results: Results, measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means of the reconstruction metrics; of each score, both means, their ratio, and the paired difference."""
    scores = {}
    for column in results.columns:
        pair = results.paired_values(column, REBUILT, results, ORIGINAL)
        if pair[0]:
            rebuilt, original = (sum(values) / len(values) for values in pair)
            share = rebuilt / original if original else None
            change = paired_test(*pair)["ci95"]
            scores[column] = {"original": original, "rebuilt": rebuilt, "share": share, "difference_ci95": change}
    means = {name: sum(song[name] for song in measured) / len(measured) for name in measured[0]}
    return {"n": len(measured), **means, "sets": results.sets.get(REBUILT, {}), "kept": scores}


def _rms_db(samples: Tensor) -> float:
    return float(10 * samples.double().square().mean().clamp(min=1e-10).log10())
