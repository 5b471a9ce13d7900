"""What an evaluation found: a row for each song, distances for each cell, and the summary that is read first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from acestep.evaluation.cells import CEILING
from acestep.evaluation.files import finite_or_none, write_json
from acestep.evaluation.prompts import Prompt
from acestep.evaluation.statistics import Interval, bootstrap, holm, paired_difference, sign_flip_test
from acestep.files import atomic

SEED = 0
"""Of every resampling, so that the same songs give the same summary."""


@dataclass(frozen=True)
class Row:
    """One song: its scores as ``METRIC.NAME``, the same against other prompts, or why it has none."""

    prompt: Prompt
    take: int
    cell: str
    path: Path | None
    excluded: str
    scores: Mapping[str, float]
    shuffled: Mapping[str, float]


@dataclass(frozen=True)
class Setting:
    """What the numbers were measured with."""

    weights: str
    fingerprint: str
    sampler: str
    cells: Mapping[str, Mapping[str, Any]]
    ears: Mapping[str, str]
    chance: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Results:
    """Rows, distances between sets by cell and metric, and settings."""

    setting: Setting
    rows: Sequence[Row]
    sets: Mapping[str, Mapping[str, Mapping[str, float]]]
    _intervals: dict[tuple[str, str, bool], Interval | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def cells(self) -> list[str]:
        """Labels of the generated cells, in the sweep's order."""
        return list(self.setting.cells)

    @property
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

    def best(self, column: str) -> str:
        """The cell with the highest mean."""
        means = {cell: found.mean for cell in self.cells if (found := self.interval(column, cell))}
        if not means:
            raise ValueError(f"{column}: no song was scored by it; the evaluation has {', '.join(self.columns)}")
        return max(means, key=means.__getitem__)

    def summary(self) -> dict[str, Any]:
        """Everything that is quoted, JSON-ready; the same songs give the same summary, byte for byte."""
        return {
            "setting": asdict(self.setting),
            "songs": {
                "requested": len(self.rows),
                "scored": sum(1 for row in self.rows if row.path),
                "excluded": [
                    {"prompt": row.prompt.id, "take": row.take, "cell": row.cell, "reason": row.excluded}
                    for row in self.rows
                    if row.excluded
                ],
            },
            "cells": [self._cell(label) for label in self.cells],
            "ceiling": self._cell(CEILING) if CEILING in self.sets else None,
            "differences": self._differences(),
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
            scores[column] = {**_described(found), "shuffled": _described(control)}
        sets = {
            f"{metric}.{name}": finite_or_none(value)
            for metric, values in self.sets.get(label, {}).items()
            for name, value in values.items()
        }
        return {"label": label, "settings": self.setting.cells.get(label, {}), "scores": scores, "sets": sets}

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
                    change = paired_difference(*pair, torch.Generator().manual_seed(SEED))
                    p = sign_flip_test([a - b for a, b in zip(*pair, strict=True)], torch.Generator().manual_seed(SEED))
                    found.append(
                        {"score": column, "cell": cell, "against": self.cells[0], **_described(change), "p": p}
                    )
        corrected = holm([one["p"] for one in found])
        return [{**one, "p_holm": p} for one, p in zip(found, corrected, strict=True)]

    def _record(self, row: Row, folder: Path) -> dict[str, Any]:
        return {
            "prompt": row.prompt.id,
            "take": row.take,
            "cell": row.cell,
            **{f"sampler.{path}": value for path, value in self.setting.cells.get(row.cell, {}).items()},
            **{f"song.{name}": value for name, value in asdict(row.prompt.song).items()},
            "audio": row.path.relative_to(folder).as_posix() if row.path else None,
            "excluded": row.excluded or None,
            **{column: row.scores.get(column) for column in self.columns},
            **{f"shuffled.{column}": row.shuffled.get(column) for column in self.columns},
        }


def _described(found: Interval | None) -> dict[str, Any]:
    if found is None:
        return {"mean": None, "ci95": None, "n": 0, "reason": "no song was scored"}
    return {"mean": found.mean, "ci95": found.bounds, "n": found.n}
