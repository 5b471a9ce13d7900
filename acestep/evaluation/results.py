"""Results of an evaluation: a row for each song, scores of the set of songs at each sweep point, and their summary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from acestep.evaluation.hashing import digest
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.statistics import (
    SEED,
    Z95,
    Interval,
    bootstrap,
    paired_tests,
    population_std,
    sample_size_warnings,
)
from acestep.evaluation.sweep import ADAPTERS, CEILING
from acestep.files import atomic, read_json, write_json
from acestep.memory import MemoryMode
from acestep.songs import AdapterUse, Request, Song

HIGHEST, LOWEST, NEITHER = "highest", "lowest", "neither"
"""Values of :attr:`EvaluationInfo.goals`."""
SUMMARY, SONGS = "summary.json", "songs.parquet"
SONG_FIELDS = tuple(one.name for one in fields(Song))
FILE_KEYS = {"points": "cells", "extractors": "ears"}
"""Fields of :class:`EvaluationInfo` that have another key in ``summary.json``."""


@dataclass(frozen=True)
class EvaluationInfo:
    """Settings and models that the numbers of an evaluation depend on.

    Attributes:
        weights: name of the checkpoint.
        fingerprint: hash of everything but the requests that the generated songs depend on.
        sampler: ``repr`` of the sampler, before the sweep changes it.
        points: settings of each sweep point, by its label.
        extractors: name of each metric's feature extractor and hash of its weights and preprocessing.
        chance: chance-level scores, by metric.
        left_out: reason for each metric that did not run.
        goals: which values of each metric are good.
        references: number of reference recordings.
        memory: the ``memory=`` mode that the weights were loaded with.
    """

    weights: str
    fingerprint: str
    sampler: str
    points: Mapping[str, Mapping[str, Any]]
    extractors: Mapping[str, str]
    chance: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]
    goals: Mapping[str, str] = field(default_factory=dict)
    references: int = 0
    memory: str = MemoryMode.full.value

    def display_name(self, name: str) -> str:
        """``name`` with the memory mode where that is not ``full``."""
        return name if self.memory == MemoryMode.full.value else f"{name}, memory={self.memory}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of ``summary.json``."""
        return {FILE_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvaluationInfo:
        """Inverse of :meth:`as_dict`; keys of other versions are ignored."""
        keys = {one.name: FILE_KEYS.get(one.name, one.name) for one in fields(cls)}
        return cls(**{name: values[key] for name, key in keys.items() if key in values})


@dataclass(frozen=True)
class ResultRow:
    """One song with its scores.

    Attributes:
        prompt: what was requested.
        take: number of the song among those of its prompt.
        point: label of the sweep point.
        path: the audio file.
        excluded: reason why there is no song.
        scores: by ``METRIC.NAME``.
        shuffled: the same against other songs' prompts.
        unscored: reason for each metric that could not score the song.
    """

    prompt: EvaluationPrompt
    take: int
    point: str
    path: Path | None
    excluded: str
    scores: Mapping[str, float]
    shuffled: Mapping[str, float]
    unscored: Mapping[str, str] = field(default_factory=dict)

    @property
    def song_columns(self) -> dict[str, Any]:
        """Fields of the song, by their columns in ``songs.parquet``."""
        return {f"song.{name}": getattr(self.prompt.song, name) for name in SONG_FIELDS}

    @property
    def request_json(self) -> str:
        """JSON of the request's fields that a :class:`Song` lacks, such as codes and adapters; empty without any."""
        if not isinstance(self.prompt.song, Request):
            return ""
        request, default = asdict(self.prompt.song), asdict(Request())
        more = {name: value for name, value in request.items() if name not in SONG_FIELDS and value != default[name]}
        return json.dumps(more, sort_keys=True) if more else ""

    @property
    def request_key(self) -> str:
        """The request as text that is hashed."""
        return f"{self.prompt.id} {self.take} {self.song_columns}{self.request_json}"

    def as_columns(self, folder: Path, settings: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        """The row of ``songs.parquet``; audio inside ``folder`` is named relative to it."""
        path = self.path
        if path:
            path = path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()
        return {
            "prompt": self.prompt.id,
            "take": self.take,
            "cell": self.point,
            **{f"sampler.{key}": value for key, value in settings.items()},
            **self.song_columns,
            "request": self.request_json or None,
            "audio": path.as_posix() if path else None,
            "excluded": self.excluded or None,
            "unheard": json.dumps(dict(self.unscored)) if self.unscored else None,
            **{column: self.scores.get(column) for column in columns},
            **{f"shuffled.{column}": self.shuffled.get(column) for column in columns},
        }

    @classmethod
    def from_columns(cls, line: Mapping[str, Any], columns: Sequence[str], folder: Path) -> ResultRow:
        """Inverse of :meth:`as_columns`, with the scores in ``columns``."""
        song_fields = {name: line[f"song.{name}"] for name in SONG_FIELDS if f"song.{name}" in line}
        more = json.loads(line.get("request") or "{}")
        if uses := more.get(ADAPTERS):
            more[ADAPTERS] = [AdapterUse(**use) for use in uses]
        return cls(
            prompt=EvaluationPrompt(
                id=line["prompt"], song=Request(**song_fields, **more) if more else Song(**song_fields)
            ),
            take=line["take"],
            point=line["cell"],
            path=folder / line["audio"] if line["audio"] else None,
            excluded=line["excluded"] or "",
            unscored=json.loads(line.get("unheard") or "{}"),
            scores={name: line[name] for name in columns if line.get(name) is not None},
            shuffled={name: line[f"shuffled.{name}"] for name in columns if line.get(f"shuffled.{name}") is not None},
        )


@dataclass(frozen=True)
class Results:
    """All scores of an evaluation.

    Attributes:
        info: settings and models that the numbers depend on.
        rows: the songs of all sweep points, and of the ceiling.
        sets: scores of all songs of a sweep point together, by point, metric and name.
        halves: set distances of random halves of the songs, by point and metric, for their standard errors.
        extra: further parts of the summary, by name.
    """

    info: EvaluationInfo
    rows: Sequence[ResultRow]
    sets: Mapping[str, Mapping[str, Mapping[str, float]]]
    halves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    _intervals: dict[tuple[str, str, bool], Interval | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def points(self) -> list[str]:
        """Labels of the sweep points, in the sweep's order; the ceiling is not among them."""
        return list(self.info.points)

    @cached_property
    def columns(self) -> list[str]:
        """Names of all per-song scores, the headline of each metric first."""
        return list(dict.fromkeys(name for row in self.rows for name in row.scores))

    @property
    def headlines(self) -> list[str]:
        """The first score of each per-song metric."""
        first: dict[str, str] = {}
        for name in self.columns:
            first.setdefault(name.partition(".")[0], name)
        return list(first.values())

    def values(self, column: str, point: str, shuffled: bool = False) -> dict[str, float]:
        """Mean over takes of a score, by prompt; prompts without it are absent."""
        takes: dict[str, list[float]] = {}
        for row in self.rows:
            scores = row.shuffled if shuffled else row.scores
            if row.point == point and math.isfinite(scores.get(column, math.nan)):
                takes.setdefault(row.prompt.id, []).append(scores[column])
        return {name: sum(scores) / len(scores) for name, scores in takes.items()}

    def paired_values(self, column: str, point: str, base: Results, base_point: str) -> tuple[list[float], list[float]]:
        """A score at ``point`` and at ``base_point`` of ``base``, over the prompts that have both."""
        first, second = self.values(column, point), base.values(column, base_point)
        shared = sorted(first.keys() & second.keys())
        return [first[name] for name in shared], [second[name] for name in shared]

    def interval(self, column: str, point: str, shuffled: bool = False) -> Interval | None:
        """Mean over prompts with its 95 % confidence interval; ``None`` where nothing was scored."""
        key = column, point, shuffled
        if key not in self._intervals:
            values = list(self.values(*key).values())
            self._intervals[key] = bootstrap(values, torch.Generator().manual_seed(SEED)) if values else None
        return self._intervals[key]

    def goal(self, column: str) -> str:
        """Which values of a score are good."""
        return self.info.goals.get(column.partition(".")[0], HIGHEST)

    def best(self, column: str) -> str:
        """The sweep point with the best mean; the first point where neither direction is good."""
        means = {point: interval.mean for point in self.points if (interval := self.interval(column, point))}
        if not means:
            raise ValueError(f"{column}: no song was scored by it; the evaluation has {', '.join(self.columns)}")
        return next(iter(means)) if self.goal(column) == NEITHER else _best(means, self.goal(column))

    def set_scores(self, point: str, metric: str) -> Mapping[str, float]:
        """The numbers of a set metric at a sweep point; empty without any."""
        return self.sets.get(point, {}).get(metric, {})

    def set_columns(self, point: str) -> dict[str, float]:
        """All numbers of set metrics at a sweep point, by ``METRIC.NAME``."""
        metrics = self.sets.get(point, {}).items()
        return {f"{metric}.{name}": value for metric, values in metrics for name, value in values.items()}

    @property
    def set_metrics(self) -> list[str]:
        """Metrics that score all songs of a sweep point together."""
        return list(dict.fromkeys(metric for point in self.points for metric in self.sets.get(point, {})))

    @property
    def set_only_metrics(self) -> list[str]:
        """Set metrics that score no single songs."""
        songwise = {column.partition(".")[0] for column in self.headlines}
        return [metric for metric in self.set_metrics if metric not in songwise]

    def set_headline(self, metric: str) -> str:
        """Name of a set metric's first number."""
        return next(name for point in self.points for name in self.set_scores(point, metric))

    def best_set(self, metric: str) -> tuple[str, float]:
        """The sweep point with the best value of a set metric, and the value."""
        name = self.set_headline(metric)
        values = {point: one[name] for point in self.points if name in (one := self.set_scores(point, metric))}
        best = _best(values, self.goal(metric))
        return best, values[best]

    def summary(self) -> dict[str, Any]:
        """All numbers that are reported, JSON-ready; equal songs give an equal summary, byte for byte."""
        return self._summary

    @cached_property
    def _summary(self) -> dict[str, Any]:
        keys = [{"prompt": row.prompt.id, "take": row.take, "cell": row.point} for row in self.rows]
        return {
            "setting": self.info.as_dict(),
            "songs": {
                "requested": len(self.rows),
                "generated": sum(1 for row in self.rows if row.path),
                "scored": sum(1 for row in self.rows if row.path and not row.unscored),
                "excluded": [
                    {**key, "reason": row.excluded} for key, row in zip(keys, self.rows, strict=True) if row.excluded
                ],
                "unheard": [
                    {**key, "metric": metric, "reason": reason}
                    for key, row in zip(keys, self.rows, strict=True)
                    for metric, reason in row.unscored.items()
                ],
            },
            "cells": [self._point_summary(point) for point in self.points],
            "ceiling": self._point_summary(CEILING) if CEILING in self.sets else None,
            "differences": self._differences(),
            "set_differences": self._set_differences(),
            "advice": sample_size_warnings(
                len({row.prompt.id for row in self.rows if row.point != CEILING}), self.sets.get(self.points[0], {})
            ),
            **self.extra,
        }

    def write(self, folder: str | Path) -> None:
        """Write ``summary.json`` and ``songs.parquet``."""
        folder = Path(folder)
        write_json(folder / SUMMARY, self.summary())
        lines = [row.as_columns(folder, self.info.points.get(row.point, {}), self.columns) for row in self.rows]
        with atomic(folder / SONGS) as aside:
            pq.write_table(pa.Table.from_pylist(lines), aside)

    def _point_summary(self, point: str) -> dict[str, Any]:
        scores = {}
        for column in self.columns:
            interval, shuffled = self.interval(column, point), self.interval(column, point, shuffled=True)
            scores[column] = {
                **(interval.as_dict() if interval else NO_SCORE),
                "shuffled": shuffled.as_dict() if shuffled else None,
            }
        return {
            "label": point,
            "settings": self.info.points.get(point, {}),
            "sha256": self.point_hash(point),
            "scores": scores,
            "sets": {name: finite_or_none(value) for name, value in self.set_columns(point).items()},
            "halves": self.halves.get(point, {}),
        }

    def point_hash(self, point: str) -> str:
        """SHA-256 over everything that a sweep point's numbers depend on.

        That is: networks, sampler, settings, requests, feature extractors, and the number of references.
        """
        requests = sorted(row.request_key for row in self.rows if row.point == point)
        generation = self.info.fingerprint, self.info.sampler, str(self.info.points.get(point, CEILING))
        extractors = str(sorted(self.info.extractors.items()))
        return digest(*generation, *requests, extractors, str(self.info.references))

    def _differences(self) -> list[dict[str, Any]]:
        """Headline scores of every point minus the first point's, paired by prompt; p-values corrected over all."""
        first = self.points[0]
        pairs = {
            (column, point): self.paired_values(column, point, self, first)
            for column in self.headlines
            for point in self.points[1:]
        }
        return [
            {"score": column, "cell": point, "against": first, **test}
            for (column, point), test in paired_tests(pairs).items()
        ]

    def _set_differences(self) -> list[dict[str, Any]]:
        """Set distances of every point minus the first point's; the error is that over the same halves of the songs."""
        differences = []
        first = self.points[0]
        for metric, halves in self.halves.get(first, {}).items():
            for point in self.points[1:]:
                others = self.halves.get(point, {}).get(metric, [])
                if halves and len(others) == len(halves):
                    name = next(iter(self.sets[point][metric]))
                    change = self.sets[point][metric][name] - self.sets[first][metric][name]
                    error = population_std([a - b for a, b in zip(others, halves, strict=True)])
                    bounds = [change - Z95 * error, change + Z95 * error]
                    key = {"distance": f"{metric}.{name}", "cell": point, "against": first}
                    differences.append({**key, "mean": change, "ci95": bounds})
        return differences


NO_SCORE = {"mean": None, "ci95": None, "n": 0, "reason": "no song was scored"}


def _best(values: Mapping[str, float], goal: str) -> str:
    return (min if goal == LOWEST else max)(values, key=values.__getitem__)


def metrics_by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Metrics that did not run, by the reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def comparable(column: str, a: Results, b: Results) -> bool:
    """Whether both have a score, from the same feature extractor: scores of different ones cannot be compared."""
    first, second = (one.info.extractors.get(column.partition(".")[0]) for one in (a, b))
    return first == second is not None and column in a.columns and column in b.columns


def merge_results(named: Mapping[str, Results], axis: str = "weights") -> Results:
    """Results on the same prompts as one sweep, with ``axis`` as its outermost setting.

    The ceiling is that of the first: the recordings through its autoencoder.

    Args:
        named: results by the value of ``axis``, such as the checkpoint's name.
        axis: name of the setting in which they differ.
    """
    first = next(iter(named.values()))
    points: dict[str, Mapping[str, Any]] = {}
    rows: list[ResultRow] = []
    sets: dict[str, Any] = {}
    halves: dict[str, Any] = {}
    for name, results in named.items():
        for point, settings in results.info.points.items():
            label = f"{axis}={name}, {point}" if settings else f"{axis}={name}"
            points[label] = {axis: name, **settings}
            rows += [replace(row, point=label) for row in results.rows if row.point == point]
            sets |= {label: results.sets[point]} if point in results.sets else {}
            halves |= {label: results.halves[point]} if point in results.halves else {}
    rows += [row for row in first.rows if row.point == CEILING]
    sets |= {CEILING: first.sets[CEILING]} if CEILING in first.sets else {}
    info = replace(
        first.info,
        weights=", ".join(named) if axis == "weights" else first.info.weights,
        fingerprint=", ".join(results.info.fingerprint for results in named.values()),
        points=points,
        left_out={name: reason for results in named.values() for name, reason in results.info.left_out.items()},
    )
    extra = {
        part: {name: results.extra[part] for name, results in named.items() if part in results.extra}
        for part in dict.fromkeys(part for results in named.values() for part in results.extra)
    }
    return Results(info, rows, sets, halves, extra)


def read_results(folder: str | Path) -> Results:
    """Read what :meth:`Results.write` wrote. Raises ``ValueError`` if a file is missing."""
    folder = Path(folder)
    for name in (SUMMARY, SONGS):
        if not (folder / name).is_file():
            raise ValueError(f"compare={folder}: no finished evaluation there ({folder / name} is missing)")
    summary = read_json(folder / SUMMARY)
    points = [*summary["cells"], *([summary["ceiling"]] if summary["ceiling"] else [])]
    columns = list(points[0]["scores"])
    sets: dict[str, dict[str, dict[str, float]]] = {point["label"]: {} for point in points}
    for point in points:
        for column, value in point["sets"].items():
            metric, _, name = column.partition(".")
            if value is not None:
                sets[point["label"]].setdefault(metric, {})[name] = value
    return Results(
        EvaluationInfo.from_dict(summary["setting"]),
        [ResultRow.from_columns(line, columns, folder) for line in pq.read_table(folder / SONGS).to_pylist()],
        sets,
        {point["label"]: point.get("halves", {}) for point in points},
    )


def named_results(folders: Sequence[str | Path]) -> dict[str, Results]:
    """The results in each folder, by the shortest end of its path that is unique.

    The memory mode is part of the name where it is not ``full``.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    named = {"/".join(path.parts[-depth:]): read_results(path) for path in paths}
    return {results.info.display_name(name): results for name, results in named.items()}


def finite_or_none(value: float) -> float | None:
    """``None`` for NaN and infinities, which JSON lacks."""
    return value if math.isfinite(value) else None
