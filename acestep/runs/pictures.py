"""Pictures of a sweep: how a number moves with each setting, all settings at once, and losses on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acestep.evaluation.report.plots import COLORS, GRID, INK, MUTED
from acestep.evaluation.series import plain
from acestep.runs.table import Row, Sweep

MOST_METRICS = 6
DETAILS = ("val/loss_", "train/")
"""Beginnings of names that the table holds and no picture needs."""
MOST_TICKS = 8
SIZE = (7.2, 3.9)
BEST, WORST = 0.95, 0.1
"""Places on the colour map."""


def pictures(sweep: Sweep) -> dict[str, Figure]:
    """Every picture that the sweep allows, by name."""
    rows = sweep.ranked()
    if not rows:
        return {}
    drawn = {}
    axis = _axis(sweep, rows)
    if axis:
        shown = [name for name in sweep.metrics if not name.startswith(DETAILS)][:MOST_METRICS]
        drawn |= {f"curve_{name}": _curve(sweep, rows, axis, name) for name in shown}
    if sweep.swept and len(rows) > 1:
        drawn["parallel_coordinates"] = _parallel(sweep, rows)
    if any(sweep.metrics[0] in found for found in sweep.curves.values()):
        drawn["on_the_way"] = _on_the_way(sweep, rows)
    return drawn


def _axis(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The swept number with most values along the axis; the first setting where there is none."""
    values = {key: {row.settings.get(key) for row in rows} for key in sweep.swept}
    numbers = {key: found for key, found in values.items() if len(found) > 1 and all(map(_is_number, found))}
    return max(numbers, key=lambda key: len(numbers[key]), default=next(iter(sweep.swept), ""))


def _curve(sweep: Sweep, rows: Sequence[Row], axis: str, metric: str) -> Figure:
    figure, axes = _axes(f"{metric} over {axis}")
    lines: dict[str, list[Row]] = {}
    for row in rows:
        rest = ", ".join(f"{_short(key)} {plain(row.settings.get(key))}" for key in sweep.swept if key != axis)
        lines.setdefault(rest, []).append(row)
    places = _places([row.settings.get(axis) for row in rows])
    for (name, line), color in zip(sorted(lines.items()), cycle(COLORS), strict=False):
        points = sorted(
            (places[plain(row.settings.get(axis))], row.numbers[metric]) for row in line if metric in row.numbers
        )
        axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker="o", linewidth=1.8, label=name)
    axes.set_xticks(list(places.values()), list(places))
    axes.set_xlabel(axis)
    return _finished(figure, axes, len(lines))


def _parallel(sweep: Sweep, rows: Sequence[Row]) -> Figure:
    """Each run a line through its settings to its score; dark lines are better."""
    figure, axes = _axes(f"all settings, and {sweep.metrics[0]} where they lead")
    names = [*sweep.swept, sweep.metrics[0]]
    columns = [[row.settings.get(key) for row in rows] for key in sweep.swept]
    found = [row.numbers[sweep.metrics[0]] for row in rows]
    heights = [_heights(column, by_size=False) for column in columns] + [_heights(found, by_size=True)]
    for place, ticks in enumerate(heights):
        axes.axvline(place, color=MUTED, linewidth=1)
        for text, height in _thinned(ticks).items():
            axes.annotate(text, (place, height), (5, 2), textcoords="offset points", fontsize=8, color=INK)
    for rank, row in reversed(list(enumerate(rows))):
        values = [*(row.settings.get(key) for key in sweep.swept), row.numbers[sweep.metrics[0]]]
        at = [ticks[plain(value)] for ticks, value in zip(heights, values, strict=True)]
        axes.plot(range(len(names)), at, color=_shade(rank, len(rows)), linewidth=2.4 if rank == 0 else 1.4)
    axes.set_xticks(range(len(names)), [_short(name) for name in names])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) - 0.5)
    return _finished(figure, axes, 0)


def _on_the_way(sweep: Sweep, rows: Sequence[Row]) -> Figure:
    name = sweep.metrics[0]
    figure, axes = _axes(f"{name} while training, the best run darkest")
    for rank, row in reversed(list(enumerate(rows))):
        curve = sweep.curves.get(row.run, {}).get(name, {})
        label = ", ".join(f"{_short(key)} {plain(row.settings.get(key))}" for key in sweep.swept) if rank < 3 else None
        axes.plot(list(curve), list(curve.values()), color=_shade(rank, len(rows)), linewidth=1.6, label=label)
    axes.set_xlabel("step")
    return _finished(figure, axes, 3)


def _axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(color=GRID)
    return figure, axes


def _finished(figure: Figure, axes: Axes, lines: int) -> Figure:
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=MUTED)
    if lines and any(axes.get_legend_handles_labels()[1]):
        figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=2)
    return figure


def _places(values: Sequence[Any]) -> dict[str, float]:
    """Where each value stands on the axis: in equal steps, since sweeps are laid out so."""
    return {plain(value): float(place) for place, value in enumerate(_sorted(values))}


def _heights(values: Sequence[Any], by_size: bool) -> dict[str, float]:
    """Heights from 0 to 1: in equal steps, or numbers by their size, as a search draws many of them."""
    ordered = _sorted(values)
    if len(ordered) > 1 and (by_size or len(ordered) > MOST_TICKS) and all(map(_is_number, ordered)):
        low, high = ordered[0], ordered[-1]
        return {plain(value): (value - low) / (high - low) for value in ordered}
    return {plain(value): place / max(len(ordered) - 1, 1) for place, value in enumerate(ordered)}


def _thinned(ticks: Mapping[str, float]) -> dict[str, float]:
    """No more words on an axis than can be read."""
    kept = list(ticks.items())
    heights = [height for _, height in kept]
    is_clear = all(b - a > 0.05 for a, b in pairwise(heights)) and len(kept) <= MOST_TICKS
    return dict(kept if is_clear else [kept[0], kept[-1]])


def _sorted(values: Sequence[Any]) -> list[Any]:
    return sorted(
        {plain(value): value for value in values}.values(),
        key=lambda v: (not _is_number(v), v if _is_number(v) else str(v)),
    )


def _shade(rank: int, count: int) -> Any:
    return colormaps["viridis_r"](BEST - (BEST - WORST) * rank / max(count - 1, 1))


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
