"""What an evaluation found: a row for each song, distances for each cell, and the summary that is read first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from acestep.evaluation.advice import advice
from acestep.evaluation.files import digest, finite_or_none
from acestep.evaluation.rows import Row
from acestep.evaluation.statistics import (
    Z95,
    Interval,
    bootstrap,
    effect_size,
    holm,
    paired_difference,
    prompts_needed,
    sign_flip_test,
    spread,
)
from acestep.evaluation.sweep import CEILING
from acestep.files import atomic, write_json
from acestep.modes import Memory

SEED = 0
"""Of every resampling, so that the same songs give the same summary."""
HIGHEST, LOWEST, NEITHER = "highest", "lowest", "neither"
"""Which values of a metric's headline are good: what a scorer may say of itself in ``goal``."""


@dataclass(frozen=True)
class Setting:
    """What the numbers were measured with.

    Attributes:
        weights: the checkpoint's name.
        fingerprint: hash of all that decides the songs beside the requests.
        sampler: what holds wherever the sweep says nothing.
        cells: what the sweep set, by label.
        ears: what listened for each metric, and the hash of its weights and preprocessing.
        chance: scores of a guess, by metric.
        left_out: metrics that could not be run, and why.
        goals: which values of each metric are good.
        references: recordings that sets are compared with.
        memory: what the weights were traded for, as ``memory=`` has it.
    """

    weights: str
    fingerprint: str
    sampler: str
    cells: Mapping[str, Mapping[str, Any]]
    ears: Mapping[str, str]
    chance: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]
    goals: Mapping[str, str] = field(default_factory=dict)
    references: int = 0
    memory: str = Memory.full.value

    def called(self, name: str) -> str:
        """``name``, with what tells it from the same weights as they are."""
        return name if self.memory == Memory.full.value else f"{name}, memory={self.memory}"


@dataclass(frozen=True)
class Results:
    """Rows, and by cell and metric: distances between sets, and the same for random halves of the songs.

    ``blocks`` are further parts of the summary, by name.
    """

    setting: Setting
    rows: Sequence[Row]
    sets: Mapping[str, Mapping[str, Mapping[str, float]]]
    halves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)
    _intervals: dict[tuple[str, str, bool], Interval | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def cells(self) -> list[str]:
        """Labels of the generated cells, in the sweep's order."""
        return list(self.setting.cells)

    @cached_property
    def columns(self) -> list[str]:
        """Every per-song score, headline of each metric first."""
        return list(dict.fromkeys(name for row in self.rows for name in row.scores))

    @property
    def headlines(self) -> list[str]:
        """The first score of each per-song metric."""
        first: dict[str, str] = {}
        for name in self.columns:
            first.setdefault(name.partition(".")[0], name)
        return list(first.values())

    def values(self, column: str, cell: str, shuffled: bool = False) -> dict[str, float]:
        """Mean over takes of a score, by prompt; prompts without it are absent."""
        takes: dict[str, list[float]] = {}
        for row in self.rows:
            scores = row.shuffled if shuffled else row.scores
            if row.cell == cell and math.isfinite(scores.get(column, math.nan)):
                takes.setdefault(row.prompt.id, []).append(scores[column])
        return {name: sum(found) / len(found) for name, found in takes.items()}

    def interval(self, column: str, cell: str, shuffled: bool = False) -> Interval | None:
        """Mean over prompts with its 95 % interval; ``None`` where nothing was scored."""
        key = column, cell, shuffled
        if key not in self._intervals:
            values = list(self.values(*key).values())
            self._intervals[key] = bootstrap(values, torch.Generator().manual_seed(SEED)) if values else None
        return self._intervals[key]

    def goal(self, column: str) -> str:
        """Which values of a score are good."""
        return self.setting.goals.get(column.partition(".")[0], HIGHEST)

    def best(self, column: str) -> str:
        """The cell with the best mean; the first where no value is better than another."""
        means = {cell: found.mean for cell in self.cells if (found := self.interval(column, cell))}
        if not means:
            raise ValueError(f"{column}: no song was scored by it; the evaluation has {', '.join(self.columns)}")
        goal = self.goal(column)
        if goal == NEITHER:
            return next(iter(means))
        return (min if goal == LOWEST else max)(means, key=means.__getitem__)

    @property
    def set_metrics(self) -> list[str]:
        """Metrics with numbers of whole cells."""
        return list(dict.fromkeys(metric for cell in self.cells for metric in self.sets.get(cell, {})))

    def set_headline(self, metric: str) -> str:
        """The first number that a metric gives of a cell."""
        return next(name for cell in self.cells for name in self.sets.get(cell, {}).get(metric, {}))

    def best_set(self, metric: str) -> tuple[str, float]:
        """The cell with a metric's best number, and the number."""
        name = self.set_headline(metric)
        found = {cell: self.sets.get(cell, {}).get(metric, {}) for cell in self.cells}
        values = {cell: one[name] for cell, one in found.items() if name in one}
        best = (min if self.goal(metric) == LOWEST else max)(values, key=values.__getitem__)
        return best, values[best]

    def summary(self) -> dict[str, Any]:
        """Everything that is quoted, JSON-ready; the same songs give the same summary, byte for byte."""
        return self._summary

    @cached_property
    def _summary(self) -> dict[str, Any]:
        return {
            "setting": asdict(self.setting),
            "songs": {
                "requested": len(self.rows),
                "generated": sum(1 for row in self.rows if row.path),
                "scored": sum(1 for row in self.rows if row.path and not row.unheard),
                "excluded": [
                    {"prompt": row.prompt.id, "take": row.take, "cell": row.cell, "reason": row.excluded}
                    for row in self.rows
                    if row.excluded
                ],
                "unheard": [
                    {"prompt": row.prompt.id, "take": row.take, "cell": row.cell, "metric": metric, "reason": reason}
                    for row in self.rows
                    for metric, reason in row.unheard.items()
                ],
            },
            "cells": [self._cell(label) for label in self.cells],
            "ceiling": self._cell(CEILING) if CEILING in self.sets else None,
            "differences": self._differences(),
            "set_differences": self._set_differences(),
            "advice": self._advice(),
            **self.blocks,
        }

    def write(self, folder: str | Path) -> None:
        """``summary.json`` and ``songs.parquet``."""
        write_json(Path(folder) / "summary.json", self.summary())
        with atomic(Path(folder) / "songs.parquet") as aside:
            pq.write_table(pa.Table.from_pylist([self._record(row, Path(folder)) for row in self.rows]), aside)

    def _cell(self, label: str) -> dict[str, Any]:
        scores = {}
        for column in self.columns:
            found, control = self.interval(column, label), self.interval(column, label, shuffled=True)
            scores[column] = {**_described(found), "shuffled": _described(control) if control else None}
        settings, halves = self.setting.cells.get(label, {}), self.halves.get(label, {})
        sets = {
            f"{metric}.{name}": finite_or_none(value)
            for metric, values in self.sets.get(label, {}).items()
            for name, value in values.items()
        }
        described = {"label": label, "settings": settings, "sha256": self.decided_by(label)}
        return described | {"scores": scores, "sets": sets, "halves": halves}

    def decided_by(self, cell: str) -> str:
        """Hash of all that decided a cell's numbers: networks, settings, what was asked for, and who listened."""
        songs = sorted(row.asked for row in self.rows if row.cell == cell)
        made = self.setting.fingerprint, self.setting.sampler, str(self.setting.cells.get(cell, CEILING))
        return digest(*made, *songs, str(sorted(self.setting.ears.items())), str(self.setting.references))

    def _advice(self) -> list[str]:
        prompts = len({row.prompt.id for row in self.rows if row.cell != CEILING})
        return advice(prompts, self.sets.get(self.cells[0], {}))

    def _differences(self) -> list[dict[str, Any]]:
        """Headline scores of every cell against the first, paired by prompt; p-values corrected over all of them."""
        found = []
        for column in self.headlines:
            base = self.values(column, self.cells[0])
            for cell in self.cells[1:]:
                other = self.values(column, cell)
                shared = sorted(base.keys() & other.keys())
                if shared:
                    pair = [other[name] for name in shared], [base[name] for name in shared]
                    found.append({"score": column, "cell": cell, "against": self.cells[0], **paired(*pair)})
        corrected = holm([one["p"] for one in found])
        return [{**one, "p_holm": p} for one, p in zip(found, corrected, strict=True)]

    def _set_differences(self) -> list[dict[str, Any]]:
        """Set distances of every cell against the first, with the error over the same halves of the songs."""
        found = []
        base = self.halves.get(self.cells[0], {})
        for metric, halves in base.items():
            for cell in self.cells[1:]:
                other = self.halves.get(cell, {}).get(metric, [])
                if halves and len(other) == len(halves):
                    name = next(iter(self.sets[cell][metric]))
                    change = self.sets[cell][metric][name] - self.sets[self.cells[0]][metric][name]
                    error = spread([a - b for a, b in zip(other, halves, strict=True)])
                    bounds = [change - Z95 * error, change + Z95 * error]
                    one = {"distance": f"{metric}.{name}", "cell": cell, "against": self.cells[0]}
                    found.append({**one, "mean": change, "ci95": bounds})
        return found

    def _record(self, row: Row, folder: Path) -> dict[str, Any]:
        return {
            "prompt": row.prompt.id,
            "take": row.take,
            "cell": row.cell,
            **{f"sampler.{path}": value for path, value in self.setting.cells.get(row.cell, {}).items()},
            **row.words,
            "request": row.beside_words or None,
            "audio": _placed(row.path, folder) if row.path else None,
            "excluded": row.excluded or None,
            "unheard": json.dumps(dict(row.unheard)) if row.unheard else None,
            **{column: row.scores.get(column) for column in self.columns},
            **{f"shuffled.{column}": row.shuffled.get(column) for column in self.columns},
        }


def _placed(path: Path, folder: Path) -> str:
    """``path`` as seen from ``folder``; a recording that lies elsewhere is named in full."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.absolute().as_posix()


def _described(found: Interval | None) -> dict[str, Any]:
    if found is None:
        return {"mean": None, "ci95": None, "n": 0, "reason": "no song was scored"}
    return {"mean": found.mean, "ci95": found.bounds, "n": found.n}


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """Metrics by why they are left out: one missing file may be missed by several."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def comparable(column: str, a: Results, b: Results) -> bool:
    """Whether one ear gave a score in both: the numbers of two scorers have nothing to do with each other."""
    ears = [one.setting.ears.get(column.partition(".")[0]) for one in (a, b)]
    return ears[0] == ears[1] is not None and column in a.columns and column in b.columns


def paired(values: Sequence[float], against: Sequence[float]) -> dict[str, Any]:
    """The mean difference of paired scores with its interval, effect size d_z and p-value.

    ``prompts_needed`` says how many prompts would show an effect of the size found, four times in five.
    """
    change = paired_difference(values, against, torch.Generator().manual_seed(SEED))
    differences = [a - b for a, b in zip(values, against, strict=True)]
    effect = effect_size(differences)
    return {
        **_described(change),
        "effect": effect,
        "prompts_needed": prompts_needed(effect) if effect else None,
        "p": sign_flip_test(differences, torch.Generator().manual_seed(SEED)),
    }
