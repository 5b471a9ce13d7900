"""The numbers that a run ended with: those that the same run gives again, so without times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acestep.evaluation.results import HIGHEST, LOWEST
from acestep.training.loggers import read_table

SUMMARY = "summary.json"
KEPT = ("val/", "score/", "train/loss")
"""Beginnings of the names of a training's metrics that say how good it is; the others say how fast, or how it went."""


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """A training's metrics by name and step; none for an evaluation."""
    return {name: values for name, values in read_table(folder).items() if name.startswith(KEPT) and values}


def rows_of(folder: Path) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """What a run found: settings and numbers, once for a training, and for each cell of an evaluation."""
    if not (folder / SUMMARY).is_file():
        return [({}, {name: values[max(values)] for name, values in sorted(curves(folder).items())})]
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return [(dict(cell["settings"]), _numbers(cell)) for cell in summary["cells"]]


def _numbers(cell: Mapping[str, Any]) -> dict[str, float]:
    scores = {name: found["mean"] for name, found in cell["scores"].items() if found["mean"] is not None}
    return {**scores, **{name: value for name, value in cell["sets"].items() if value is not None}}


def goal_of(folder: Path, name: str) -> str:
    """Whether a high or a low value of the metric ``name`` is good: losses and what evaluation says of itself."""
    if not (folder / SUMMARY).is_file():
        return LOWEST if "loss" in name else HIGHEST
    goals = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["setting"]["goals"]
    goal: str = goals.get(name.partition(".")[0], HIGHEST)
    return goal


def score_of(folder: Path, name: str | None) -> float | None:
    """The value of the metric ``name``, the best of all cells; by default an evaluation's first.

    Raises:
        ValueError: if the run has no such metric.
    """
    found = [numbers for _, numbers in rows_of(folder)]
    if name is None:
        name = next((metric for numbers in found for metric in numbers), None)
    values = [numbers[name] for numbers in found if name in numbers]
    if not values:
        there = sorted({metric for numbers in found for metric in numbers})
        if not there:
            return None
        raise ValueError(f"score={name}: the run has no such metric; it has {', '.join(there)}")
    return (min if goal_of(folder, name or "") == LOWEST else max)(values)
