"""Pictures of an evaluation: scores with their bands over the sweep, distances, what one costs in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from acestep.evaluation.results import NEITHER, Results, comparable
from acestep.evaluation.series import Series, axis_of, described, series_of
from acestep.evaluation.statistics import Z95, Interval
from acestep.evaluation.sweep import CEILING
from acestep.files import atomic

INK, MUTED, ACCENT, WARM, GRID = "#1b2430", "#6b7684", "#2f6fde", "#d9822b", "#e3e7ec"
COLORS = (ACCENT, "#3f9c6b", "#9b59b6", "#c0392b", "#0f8b9d", "#8d6e28")
MOST_COMPARED = 4
WIDTH, HEIGHT = 5.2, 3.3
"""In inches: letters stay legible where the page shrinks a picture to a phone's width."""


def figures(found: Mapping[str, Results]) -> dict[str, Figure]:
    """Every picture that the first of these results allows, by file name, with the others' curves over its sweep."""
    results, *others = found.values()
    axis = axis_of(results)
    curves = series_of(results, axis, next(iter(found)) if others else "")
    for name, other in found.items():
        if other is not results and axis and axis_of(other) == axis:
            curves += series_of(other, axis, name)
    drawn = {}
    if len(results.cells) > 1:
        drawn |= {column.replace(".", "_"): _curve(curves, axis, column) for column in results.headlines}
        drawn |= {metric: _distance(curves, axis, metric) for metric in results.set_metrics}
        drawn |= _front(curves, axis)
    columns = [c for c in results.headlines if all(comparable(c, results, other) for other in others)]
    columns = [c for c in columns if results.goal(c) != NEITHER][:MOST_COMPARED]
    if others and columns:
        drawn["compared"] = _compared(found, columns)
    for metric, chance in results.setting.chance.items():
        factors = [name for name in chance if f"{metric}.{name}" in results.columns][1:]
        if factors:
            drawn[f"{metric}_factors"] = _factors(results, metric, factors)
    return drawn


def save(figure: Figure, path: Path) -> str:
    """Write ``path`` as PNG, and the same as SVG beside it; returns the ``<svg>`` element."""
    # Canvases by themselves draw once each; ``savefig`` would draw twice, and find all places anew.
    drawn = StringIO()
    FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None})
    figure.set_layout_engine("none")
    with atomic(path.with_suffix(".svg")) as aside:
        aside.write_text(drawn.getvalue(), encoding="utf-8")
    figure.dpi = 150
    with atomic(path.with_suffix(".png")) as aside:
        FigureCanvasAgg(figure).print_png(aside)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _curve(curves: Sequence[Series], axis: str, column: str) -> Figure:
    results = curves[0].results
    figure, axes = _axes(curves, axis, f"{column.replace('.', ' · ')}: mean over prompts, 95 % interval")
    for number, (curve, color) in enumerate(zip(curves, cycle(COLORS), strict=False)):
        points = _points(curve, column)
        at, found = [x for x, _ in points], [interval for _, interval in points]
        axes.fill_between(at, [i.low for i in found], [i.high for i in found], color=color, alpha=0.17, linewidth=0)
        axes.plot(
            at, [i.mean for i in found], color=color, marker="o", linewidth=2 - 0.5 * bool(number), label=curve.name
        )
    control = _points(curves[0], column, shuffled=True)
    if control:
        at, means = [x for x, _ in control], [i.mean for _, i in control]
        axes.plot(at, means, color=WARM, linewidth=1.2, label="prompts shuffled")
    metric, _, name = column.partition(".")
    if name in results.setting.chance.get(metric, {}):
        axes.axhline(results.setting.chance[metric][name], color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    ceiling = results.interval(column, CEILING)
    if ceiling:
        axes.axhline(ceiling.mean, color=MUTED, linestyle="--", linewidth=1.2, label="recordings, coded")
    return _finished(figure, axes)


def _distance(curves: Sequence[Series], axis: str, metric: str) -> Figure:
    results = curves[0].results
    headline = results.set_headline(metric)
    figure, axes = _axes(curves, axis, f"{metric} · {headline}: all songs of a setting together")
    for curve, color in zip(curves, cycle(COLORS), strict=False):
        points = _values(curve, metric, headline)
        at, values, errors = [x for x, _ in points], [v for _, v in points], _values(curve, metric, "error")
        axes.plot(at, values, color=color, marker="o", linewidth=2, label=curve.name)
        if len(errors) == len(values):
            reach = [Z95 * error for _, error in errors]
            low, high = (
                [v - r for v, r in zip(values, reach, strict=True)],
                [v + r for v, r in zip(values, reach, strict=True)],
            )
            axes.fill_between(at, low, high, color=color, alpha=0.17, linewidth=0)
    far, errors = _values(curves[0], metric, "infinity"), _values(curves[0], metric, "infinity_error")
    if far:
        bars = [Z95 * error for _, error in errors]
        at, values = [x for x, _ in far], [v for _, v in far]
        axes.errorbar(
            at, values, bars, color=WARM, marker="o", linewidth=1.2, capsize=3, label="for infinitely many songs"
        )
    ceiling = results.sets.get(CEILING, {}).get(metric, {})
    if headline in ceiling:
        axes.axhline(ceiling[headline], color=MUTED, linestyle="--", linewidth=1.2, label="recordings, coded")
    return _finished(figure, axes)


def _front(curves: Sequence[Series], axis: str) -> dict[str, Figure]:
    """What each setting gives in adherence and costs in distance: up and to the left is better."""
    results = curves[0].results
    distances = [metric for metric in results.set_metrics if metric.startswith("fad")]
    adherences = [column for column in results.headlines if column.startswith("clap")] or results.headlines
    if not distances or not adherences:
        return {}
    column, metric = adherences[0], distances[0]
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(
        f"{column.replace('.', ' · ')} over {metric}: up and left is better", loc="left", fontsize=11, color=INK
    )
    axes.set_xlabel(metric)
    axes.grid(color=GRID)
    for curve, color in zip(curves, cycle(COLORS), strict=False):
        scores, far = dict(_points(curve, column)), dict(_values(curve, metric, results.set_headline(metric)))
        shared = [x for x, _ in curve.cells if x in scores and x in far]
        axes.plot([far[x] for x in shared], [scores[x].mean for x in shared], color=color, marker="o", label=curve.name)
        for x in shared if axis else ():
            axes.annotate(
                f"{x:g}", (far[x], scores[x].mean), (4, 4), textcoords="offset points", fontsize=8, color=MUTED
            )
    return {"front": _finished(figure, axes)}


def _compared(found: Mapping[str, Results], columns: Sequence[str]) -> Figure:
    """Every evaluation at its best setting, one row each, one panel for each score."""
    figure = Figure(figsize=(WIDTH, 0.45 * len(found) + 1.5), layout="constrained")
    for place, column in enumerate(columns, 1):
        axes = figure.add_subplot(1, len(columns), place)
        for row, (results, color) in enumerate(zip(found.values(), cycle(COLORS), strict=False)):
            interval = results.interval(column, results.best(column))
            if interval:
                axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=2.5)
                axes.plot([interval.mean], [row], color=color, marker="o")
        axes.set_yticks(range(len(found)), list(found) if place == 1 else [""] * len(found))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_title(column.replace(".", "\n"), fontsize=9, color=INK)
        axes.grid(axis="x", color=GRID)
        _plain(axes)
    return figure


def _points(curve: Series, column: str, shuffled: bool = False) -> list[tuple[float, Interval]]:
    found = [(x, curve.results.interval(column, cell, shuffled)) for x, cell in curve.cells]
    return [(x, interval) for x, interval in found if interval]


def _values(curve: Series, metric: str, name: str) -> list[tuple[float, float]]:
    found = [(x, curve.results.sets.get(cell, {}).get(metric, {})) for x, cell in curve.cells]
    return [(x, values[name]) for x, values in found if name in values]


def _factors(results: Results, metric: str, factors: Sequence[str]) -> Figure:
    best = results.best(f"{metric}.{next(iter(results.setting.chance[metric]))}")
    figure = Figure(figsize=(WIDTH, 0.4 * len(factors) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for row, name in enumerate(factors):
        found, ceiling = results.interval(f"{metric}.{name}", best), results.interval(f"{metric}.{name}", CEILING)
        if found:
            axes.barh(row, found.mean, color=ACCENT, height=0.55, alpha=0.85)
            axes.plot([found.low, found.high], [row, row], color=INK, linewidth=2, solid_capstyle="butt")
        chance = results.setting.chance[metric][name]
        axes.plot([chance, chance], [row - 0.36, row + 0.36], color=WARM, linewidth=2.5, label="" if row else "chance")
        if ceiling:
            at = ceiling.mean
            axes.plot([at, at], [row - 0.36, row + 0.36], color=MUTED, linewidth=2.5, label="" if row else "ceiling")
    axes.set_yticks(range(len(factors)), factors)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    where = described(results.setting.cells[best])
    axes.set_title(f"{metric} by factor{f' at {where}' if where else ''}", loc="left", fontsize=11, color=INK)
    axes.grid(axis="x", color=GRID)
    return _finished(figure, axes)


def _axes(curves: Sequence[Series], axis: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    if axis:
        places = sorted({x for curve in curves for x, _ in curve.cells})
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xlabel(axis.replace(".", " "))
    else:
        results = curves[0].results
        names = [described(results.setting.cells[label]) or label for label in results.cells]
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(color=GRID)
    return figure, axes


def _finished(figure: Figure, axes: Axes) -> Figure:
    _plain(axes)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=3)
    return figure


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=MUTED)
