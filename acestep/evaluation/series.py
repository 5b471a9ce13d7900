"""A sweep as curves: which setting runs along the axis, and which tell the curves apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acestep.evaluation.results import Results

USUAL_AXIS = "guidance.scale"


@dataclass(frozen=True)
class Series:
    """One curve: cells of ``results`` by their place on the axis, in its order."""

    name: str
    results: Results
    cells: tuple[tuple[float, str], ...]


def axis_of(results: Results) -> str:
    """The swept number along the axis: the guidance scale where it is swept, else the one with most values."""
    settings = [results.setting.cells[label] for label in results.cells]
    values = {path: {cell[path] for cell in settings} for path in settings[0] if all(path in cell for cell in settings)}
    numbers = {path: found for path, found in values.items() if len(found) > 1 and all(map(_is_number, found))}
    if USUAL_AXIS in numbers:
        return USUAL_AXIS
    return max(numbers, key=lambda path: len(numbers[path]), default="")


def series_of(results: Results, axis: str, name: str = "") -> list[Series]:
    """The curves of a sweep along ``axis``; without an axis, one curve over the cells in their order."""
    if not axis:
        return [Series(name or "generated", results, tuple(enumerate(results.cells)))]
    curves: dict[str, list[tuple[float, str]]] = {}
    for label in results.cells:
        settings = results.setting.cells[label]
        rest = described({path: value for path, value in settings.items() if path != axis})
        curves.setdefault(", ".join(filter(None, [name, rest])), []).append((float(settings[axis]), label))
    return [Series(curve or "generated", results, tuple(sorted(cells))) for curve, cells in curves.items()]


def described(settings: Mapping[str, Any]) -> str:
    """Settings in few words: the last part of each path and its value."""
    return ", ".join(f"{path.rpartition('.')[2]} {plain(value)}" for path, value in settings.items())


def plain(value: Any) -> str:
    """A value as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
