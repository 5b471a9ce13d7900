"""Scores of all metrics over clips; features are extracted once for each extractor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from acestep.audio.audio import Audio
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.base import FeatureExtractor, Features
from acestep.evaluation.embedders.cache import FeatureCache, map_songs
from acestep.evaluation.metrics.base import Metric, PairMetric, Scores, SetMetric, SongMetric, TakesMetric
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.results import ResultRow
from acestep.evaluation.samples import Clip

SHUFFLES = 2
"""Other prompts that each song is scored against for the shuffled control."""
KINDS = (SongMetric, PairMetric, TakesMetric, SetMetric)


class Scoring:
    """Applies metrics to clips.

    Args:
        metrics: loaded metrics, by the name of their columns.
        cache: cache of features.
        references: recordings that sets are compared with.
    """

    def __init__(self, metrics: Mapping[str, Metric], cache: FeatureCache, references: Sequence[Path]) -> None:
        self.metrics = {name: metric for kind in KINDS for name, metric in metrics.items() if isinstance(metric, kind)}
        self.cache = cache
        self.references = references
        self.unscored: dict[str, dict[str, str]] = {}
        self._features: dict[tuple[str, Path], Features] = {}

    def remove_inapplicable(self, prompts: Sequence[EvaluationPrompt], takes: int = 1) -> dict[str, str]:
        """Remove the metrics that cannot score these prompts, and return the reason for each."""
        reasons = {
            name: reason
            for name, metric in self.metrics.items()
            if (reason := self._reason_not_to_apply(metric, prompts, takes))
        }
        self.metrics = {name: metric for name, metric in self.metrics.items() if name not in reasons}
        return reasons

    def _reason_not_to_apply(self, metric: Metric, prompts: Sequence[EvaluationPrompt], takes: int) -> str:
        if metric.needs_reference and len(self.references) < 2:
            return "fewer than 2 reference recordings, and no reference statistics are given"
        if isinstance(metric, PairMetric) and not any(prompt.recording for prompt in prompts):
            return "no prompt has a recording to compare with"
        if isinstance(metric, TakesMetric) and takes < 2:
            return "compares takes of a prompt; add eval.takes=2 or more"
        return "" if any(map(metric.applies, prompts)) else "no prompt holds what it compares with"

    def prepare(self, ranks: Ranks) -> None:
        """Extract the features of all recordings that metrics need, on all ranks together, and fit the metrics."""
        for metric in self.metrics.values():
            extract = partial(self._recording_features, metric.extractor)
            map_songs(extract, ranks.shard(metric.recordings(self.references)), metric.extractor.thread_safe)
        ranks.barrier()
        for metric in self._song_metrics.values():
            recordings = metric.recordings(self.references)
            metric.fit([self._cached(metric.extractor, path) for path in recordings])

    def write_statistics(self, folder: Path) -> None:
        """Statistics of the reference, one file for each metric that supports them."""
        if len(self.references) >= 2:
            for name, metric in self._set_metrics.items():
                metric.write_statistics(self._reference_features(metric), folder / f"{name}.npz")

    def extract_from(self, clip: Clip, audio: Audio) -> None:
        """Run all thread-safe extractors on a clip while its audio is in memory."""
        self.cache.set_audio(clip.path, audio)
        self._extract_thread_safe(clip)

    def extract(self, clips: Sequence[Clip], ranks: Ranks) -> None:
        """Run all extractors on this rank's share of the clips, for the cache."""
        share = ranks.shard([clip for clip in clips if not clip.excluded])
        map_songs(self._extract_thread_safe, share)
        for name in self.metrics:
            self._clip_features(name, share)

    def rows(self, clips: Sequence[Clip]) -> Iterator[ResultRow]:
        """One row for each clip: its scores, and its scores against the prompts or recordings of other songs."""
        generated = [clip for clip in clips if not clip.excluded]
        scores: dict[str, Scores] = {clip.key: {} for clip in generated}
        shuffled: dict[str, Scores] = {clip.key: {} for clip in generated}
        self._score_songs(generated, scores, shuffled)
        self._compare_pairs(generated, scores, shuffled)
        self._compare_takes(generated, scores)
        for name in self._set_metrics:
            self._clip_features(name, generated)
        for clip in clips:
            yield ResultRow(
                prompt=clip.prompt,
                take=clip.take,
                point=clip.point.label,
                path=None if clip.excluded else clip.path,
                excluded=clip.excluded,
                scores=scores.get(clip.key, {}),
                shuffled=shuffled.get(clip.key, {}),
                unscored=self.unscored.get(clip.key, {}),
            )

    def sets(self, clips: Sequence[Clip], rows: Sequence[ResultRow]) -> dict[str, Scores]:
        """Scores of all clips together, by metric: distances to the reference, and aggregates over ``rows``."""
        result = {}
        for name, set_metric in self._set_metrics.items():
            features = self._set_features(name, clips)
            if len(features) >= 2:
                same_songs = clips[0].point.sampler is None
                reference = self._reference_features(set_metric)
                result[name] = set_metric.distance(features, reference, same_songs=same_songs)
        for name, metric in self._song_metrics.items():
            if scores := [one for row in rows if (one := _without_prefix(name, row.scores))]:
                result[name] = metric.aggregate(scores)
        return {name: values for name, values in result.items() if values}

    def halves(self, clips: Sequence[Clip]) -> dict[str, list[float]]:
        """Set distances of random halves of the songs, the same halves at every sweep point, by metric."""
        halves = {
            name: metric.half_distances(self._set_features(name, clips), self._reference_features(metric))
            for name, metric in self._set_metrics.items()
        }
        return {name: distances for name, distances in halves.items() if distances is not None}

    @property
    def _song_metrics(self) -> dict[str, SongMetric]:
        return {name: metric for name, metric in self.metrics.items() if isinstance(metric, SongMetric)}

    @property
    def _set_metrics(self) -> dict[str, SetMetric]:
        return {name: metric for name, metric in self.metrics.items() if isinstance(metric, SetMetric)}

    def _extract_thread_safe(self, clip: Clip) -> None:
        for name, metric in self.metrics.items():
            if metric.extractor.thread_safe:
                self._clip_features(name, [clip])

    def _recording_features(self, extractor: FeatureExtractor, path: Path) -> Features:
        try:
            return self._cached(extractor, path)
        except ValueError as error:
            message = str(error).removeprefix(f"{path}: ")
            raise ValueError(f"recording {path}: {message}; mend it or take it out of its folder") from error

    def _clip_features(self, name: str, clips: Sequence[Clip]) -> list[tuple[Clip, Features]]:
        """The clips that a metric applies to, with their features; errors are kept in ``unscored``."""
        metric, result = self.metrics[name], []
        for clip in clips:
            if not metric.applies(clip.prompt):
                continue
            try:
                result.append((clip, self._cached(metric.extractor_for(clip.prompt), clip.path)))
            except ValueError as error:
                self.unscored.setdefault(clip.key, {})[name] = str(error)
        return result

    def _set_features(self, name: str, clips: Sequence[Clip]) -> list[Features]:
        return [features for _, features in self._clip_features(name, [clip for clip in clips if not clip.excluded])]

    def _reference_features(self, metric: Metric) -> list[Features]:
        return [self._cached(metric.extractor, path) for path in self.references]

    def _score_songs(self, clips: Sequence[Clip], scores: dict[str, Scores], shuffled: dict[str, Scores]) -> None:
        for name, metric in self._song_metrics.items():
            songs = self._clip_features(name, clips)
            others = _other_prompts([clip.prompt for clip, _ in songs])
            for (clip, features), other_prompts in zip(songs, others, strict=True):
                try:
                    scores[clip.key] |= _with_prefix(name, metric.score(features, clip.prompt))
                except ValueError as error:
                    self.unscored.setdefault(clip.key, {})[name] = str(error)
                    continue
                if metric.uses_prompt:
                    control = [metric.score(features, other) for other in other_prompts]
                    shuffled[clip.key] |= _with_prefix(name, _mean_scores(control))

    def _compare_pairs(self, clips: Sequence[Clip], scores: dict[str, Scores], shuffled: dict[str, Scores]) -> None:
        for name, metric in self.metrics.items():
            if not isinstance(metric, PairMetric):
                continue
            pairs = [
                (clip, features, self._cached(metric.extractor, clip.prompt.recording))
                for clip, features in self._clip_features(name, [clip for clip in clips if clip.prompt.recording])
                if clip.prompt.recording
            ]
            by_prompt = {clip.prompt.id: recording for clip, _, recording in pairs}
            others = _other_prompts([clip.prompt for clip, _, _ in pairs])
            for (clip, features, recording), other_prompts in zip(pairs, others, strict=True):
                scores[clip.key] |= _with_prefix(name, metric.compare(features, recording))
                control = [metric.compare(features, by_prompt[other.id]) for other in other_prompts]
                shuffled[clip.key] |= _with_prefix(name, _mean_scores(control))

    def _compare_takes(self, clips: Sequence[Clip], scores: dict[str, Scores]) -> None:
        for name, metric in self.metrics.items():
            if not isinstance(metric, TakesMetric):
                continue
            by_prompt: dict[str, list[tuple[Clip, Features]]] = {}
            for clip, features in self._clip_features(name, clips):
                by_prompt.setdefault(clip.prompt.id, []).append((clip, features))
            for takes in by_prompt.values():
                for index, (clip, features) in enumerate(takes):
                    if others := [other for i, (_, other) in enumerate(takes) if i != index]:
                        scores[clip.key] |= _with_prefix(name, metric.compare_takes(features, others))

    def _cached(self, extractor: FeatureExtractor, recording: Path) -> Features:
        key = extractor.fingerprint, recording
        if key not in self._features:
            self._features[key] = self.cache.features(extractor, recording)
        return self._features[key]


def _other_prompts(prompts: Sequence[EvaluationPrompt]) -> list[list[EvaluationPrompt]]:
    """For each song, prompts of other songs: those ahead of it by fixed strides, spread over the list."""
    n = len(prompts)
    strides = sorted({max(1, round(n * (k + 1) / (SHUFFLES + 1))) for k in range(SHUFFLES)})
    picked = [[prompts[(i + stride) % n] for stride in strides] for i in range(n)]
    return [[other for other in others if other.id != own.id] for own, others in zip(prompts, picked, strict=True)]


def _mean_scores(scores: Sequence[Mapping[str, float]]) -> Scores:
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]} if scores else {}


def _with_prefix(metric: str, scores: Mapping[str, float]) -> Scores:
    return {f"{metric}.{name}": value for name, value in scores.items()}


def _without_prefix(metric: str, scores: Mapping[str, float]) -> Scores:
    return {name.removeprefix(f"{metric}."): v for name, v in scores.items() if name.startswith(f"{metric}.")}
