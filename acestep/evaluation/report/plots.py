"""Plots of an evaluation: scores with confidence bands over the sweep, set distances, adherence against distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from acestep.evaluation.results import NEITHER, Results, comparable
from acestep.evaluation.statistics import Z95, Interval
from acestep.evaluation.sweep import CEILING, format_value, is_number
from acestep.files import atomic

INK, MUTED, ACCENT, WARM, GRID = "#1b2430", "#6b7684", "#2f6fde", "#d9822b", "#e3e7ec"
COLORS = (ACCENT, "#3f9c6b", "#9b59b6", "#c0392b", "#0f8b9d", "#8d6e28")
MAX_COMPARED_SCORES = 4
WIDTH, HEIGHT = 5.2, 3.3
"""In inches: letters stay legible where the page shrinks a plot to a phone's width."""
USUAL_AXIS = "guidance.scale"
CEILING_LABEL = "recordings, coded"


@dataclass(frozen=True)
class Curve:
    """A curve of a plot.

    Attributes:
        name: its label in the legend.
        results: the evaluation it belongs to.
        points: position on the x axis and label of each sweep point, in the order of the axis.
    """

    name: str
    results: Results
    points: tuple[tuple[float, str], ...]

    def intervals(self, column: str, shuffled: bool = False) -> dict[float, Interval]:
        """Mean and interval of a score, by position on the x axis."""
        intervals = {x: self.results.interval(column, point, shuffled) for x, point in self.points}
        return {x: interval for x, interval in intervals.items() if interval}

    def set_values(self, metric: str, name: str) -> dict[float, float]:
        """A number of a set metric, by position on the x axis."""
        scores = {x: self.results.set_scores(point, metric) for x, point in self.points}
        return {x: values[name] for x, values in scores.items() if name in values}


def sweep_axis(results: Results) -> str:
    """The swept number for the x axis: the guidance scale where it is swept, else the number with most values."""
    settings = [results.info.points[point] for point in results.points]
    values = {key: {one[key] for one in settings} for key in settings[0] if all(key in one for one in settings)}
    numbers = numeric_axes(values)
    return USUAL_AXIS if USUAL_AXIS in numbers else next(iter(numbers), "")


def numeric_axes(values: Mapping[str, set[Any]]) -> list[str]:
    """Keys that have more than one value, all of them numbers; those with most values first."""
    keys = [key for key, found in values.items() if len(found) > 1 and all(map(is_number, found))]
    return sorted(keys, key=lambda key: -len(values[key]))


def sweep_curves(results: Results, axis: str, name: str = "") -> list[Curve]:
    """The curves of a sweep along ``axis``; without an axis, one curve over the sweep points in their order."""
    if not axis:
        return [Curve(name or "generated", results, tuple(enumerate(results.points)))]
    curves: dict[str, list[tuple[float, str]]] = {}
    for point in results.points:
        settings = results.info.points[point]
        rest = short_settings({key: value for key, value in settings.items() if key != axis})
        curves.setdefault(", ".join(filter(None, [name, rest])), []).append((float(settings[axis]), point))
    return [Curve(curve or "generated", results, tuple(sorted(points))) for curve, points in curves.items()]


def short_settings(settings: Mapping[str, Any]) -> str:
    """The last part of each key and its value."""
    return ", ".join(f"{key.rpartition('.')[2]} {format_value(value)}" for key, value in settings.items())


def evaluation_figures(named: Mapping[str, Results]) -> dict[str, Figure]:
    """Every plot of the first results, by file name, with the others' curves where they sweep the same axis."""
    results, *others = named.values()
    axis = sweep_axis(results)
    curves = sweep_curves(results, axis, next(iter(named)) if others else "")
    for name, other in named.items():
        if other is not results and axis and sweep_axis(other) == axis:
            curves += sweep_curves(other, axis, name)
    figures: dict[str, Figure] = {}
    if len(results.points) > 1:
        figures |= {column.replace(".", "_"): _score_figure(curves, axis, column) for column in results.headlines}
        figures |= {metric: _set_figure(curves, axis, metric) for metric in results.set_metrics}
        figures |= _tradeoff_figure(curves, axis)
    columns = [column for column in results.headlines if all(comparable(column, results, other) for other in others)]
    columns = [column for column in columns if results.goal(column) != NEITHER][:MAX_COMPARED_SCORES]
    if others and columns:
        figures["compared"] = _comparison_figure(named, columns)
    for metric, chance in results.info.chance.items():
        factors = [name for name in chance if f"{metric}.{name}" in results.columns][1:]
        if factors:
            figures[f"{metric}_factors"] = _factor_figure(results, metric, factors)
    return figures


def save_figure(figure: Figure, path: Path) -> str:
    """Write ``path`` as PNG, and as SVG beside it; returns the ``<svg>`` element."""
    # The canvases draw once each; ``savefig`` would draw twice, and lay out anew.
    svg = StringIO()
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
    figure.set_layout_engine("none")
    with atomic(path.with_suffix(".svg")) as aside:
        aside.write_text(svg.getvalue(), encoding="utf-8")
    figure.dpi = 150
    with atomic(path.with_suffix(".png")) as aside:
        FigureCanvasAgg(figure).print_png(aside)
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def figure_gallery(figures: Mapping[str, Figure], folder: Path) -> str:
    """Write the figures to ``folder`` by their names; returns the HTML that shows them."""
    shown = [f"<figure>{save_figure(figure, folder / f'{name}.png')}</figure>" for name, figure in figures.items()]
    return f"<section class=figures>{''.join(shown)}</section>"


def _score_figure(curves: Sequence[Curve], axis: str, column: str) -> Figure:
    results = curves[0].results
    figure, axes = _sweep_axes(curves, axis, f"{column.replace('.', ' · ')}: mean over prompts, 95 % interval")
    for number, (curve, color) in enumerate(zip(curves, cycle(COLORS), strict=False)):
        intervals = curve.intervals(column)
        means = [one.mean for one in intervals.values()]
        axes.plot(list(intervals), means, color=color, marker="o", linewidth=1.5 if number else 2, label=curve.name)
        _draw_band(axes, {x: one.bounds for x, one in intervals.items()}, color)
    control = {x: one.mean for x, one in curves[0].intervals(column, shuffled=True).items()}
    if control:
        axes.plot(list(control), list(control.values()), color=WARM, linewidth=1.2, label="prompts shuffled")
    metric, _, name = column.partition(".")
    if name in results.info.chance.get(metric, {}):
        axes.axhline(results.info.chance[metric][name], color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    ceiling = results.interval(column, CEILING)
    if ceiling:
        axes.axhline(ceiling.mean, color=MUTED, linestyle="--", linewidth=1.2, label=CEILING_LABEL)
    return finish_figure(figure, axes)


def _set_figure(curves: Sequence[Curve], axis: str, metric: str) -> Figure:
    results = curves[0].results
    headline = results.set_headline(metric)
    figure, axes = _sweep_axes(curves, axis, f"{metric} · {headline}: all songs of a setting together")
    for curve, color in zip(curves, cycle(COLORS), strict=False):
        values, errors = curve.set_values(metric, headline), curve.set_values(metric, "error")
        axes.plot(list(values), list(values.values()), color=color, marker="o", linewidth=2, label=curve.name)
        if len(errors) == len(values):
            reach = {x: Z95 * error for x, error in errors.items()}
            _draw_band(axes, {x: [value - reach[x], value + reach[x]] for x, value in values.items()}, color)
    limits, errors = (curves[0].set_values(metric, name) for name in ("infinity", "infinity_error"))
    if limits:
        axes.errorbar(
            list(limits), list(limits.values()), [Z95 * error for error in errors.values()],
            color=WARM, marker="o", linewidth=1.2, capsize=3, label="for infinitely many songs",
        )  # fmt: skip
    ceiling = results.set_scores(CEILING, metric)
    if headline in ceiling:
        axes.axhline(ceiling[headline], color=MUTED, linestyle="--", linewidth=1.2, label=CEILING_LABEL)
    return finish_figure(figure, axes)


def _tradeoff_figure(curves: Sequence[Curve], axis: str) -> dict[str, Figure]:
    """Prompt adherence against Fréchet distance, a point for each sweep point; empty without either metric."""
    results = curves[0].results
    distances = [metric for metric in results.set_metrics if metric.startswith("fad")]
    adherences = [column for column in results.headlines if column.startswith("clap")] or results.headlines
    if not distances or not adherences:
        return {}
    column, metric = adherences[0], distances[0]
    title = f"{column.replace('.', ' · ')} over {metric}: up and left is better"
    figure, axes = new_figure(title, (WIDTH, HEIGHT))
    axes.set_xlabel(metric)
    for curve, color in zip(curves, cycle(COLORS), strict=False):
        scores, distance = curve.intervals(column), curve.set_values(metric, results.set_headline(metric))
        shared = [x for x, _ in curve.points if x in scores and x in distance]
        means = [scores[x].mean for x in shared]
        axes.plot([distance[x] for x in shared], means, color=color, marker="o", label=curve.name)
        for x, mean in zip(shared, means, strict=True) if axis else ():
            axes.annotate(f"{x:g}", (distance[x], mean), (4, 4), textcoords="offset points", fontsize=8, color=MUTED)
    return {"front": finish_figure(figure, axes)}


def _comparison_figure(named: Mapping[str, Results], columns: Sequence[str]) -> Figure:
    """Every evaluation at its best sweep point, one row each, one panel for each score."""
    figure = Figure(figsize=(WIDTH, 0.45 * len(named) + 1.5), layout="constrained")
    for place, column in enumerate(columns, 1):
        axes = figure.add_subplot(1, len(columns), place)
        for row, (results, color) in enumerate(zip(named.values(), cycle(COLORS), strict=False)):
            interval = results.interval(column, results.best(column))
            if interval:
                axes.plot(interval.bounds, [row, row], color=color, linewidth=2.5)
                axes.plot([interval.mean], [row], color=color, marker="o")
        axes.set_yticks(range(len(named)), list(named) if place == 1 else [""] * len(named))
        axes.set_ylim(len(named) - 0.5, -0.5)
        axes.set_title(column.replace(".", "\n"), fontsize=9, color=INK)
        axes.grid(axis="x", color=GRID)
        _remove_spines(axes)
    return figure


def _factor_figure(results: Results, metric: str, factors: Sequence[str]) -> Figure:
    """Scores of a metric's factors at its best sweep point, with chance level and ceiling."""
    best = results.best(f"{metric}.{next(iter(results.info.chance[metric]))}")
    settings = short_settings(results.info.points[best])
    title = f"{metric} by factor{f' at {settings}' if settings else ''}"
    figure, axes = new_figure(title, (WIDTH, 0.4 * len(factors) + 1.2), grid="x")
    for row, name in enumerate(factors):
        score, ceiling = (results.interval(f"{metric}.{name}", point) for point in (best, CEILING))
        if score:
            axes.barh(row, score.mean, color=ACCENT, height=0.55, alpha=0.85)
            axes.plot(score.bounds, [row, row], color=INK, linewidth=2, solid_capstyle="butt")
        marks = [(results.info.chance[metric][name], WARM, "chance")]
        marks += [(ceiling.mean, MUTED, "ceiling")] if ceiling else []
        for x, color, label in marks:
            axes.plot([x, x], [row - 0.36, row + 0.36], color=color, linewidth=2.5, label="" if row else label)
    axes.set_yticks(range(len(factors)), factors)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    return finish_figure(figure, axes)


def new_figure(title: str, size: tuple[float, float], grid: Literal["x", "y", "both"] = "both") -> tuple[Figure, Axes]:
    """A figure of ``size`` in inches, and its axes with a grid."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(axis=grid, color=GRID)
    return figure, axes


def finish_figure(figure: Figure, axes: Axes, fontsize: int = 9, columns: int = 3) -> Figure:
    """Remove spines and add a legend where something has a label."""
    _remove_spines(axes)
    if any(axes.get_legend_handles_labels()[1]):
        figure.legend(loc="outside lower left", frameon=False, fontsize=fontsize, ncols=columns)
    return figure


def _sweep_axes(curves: Sequence[Curve], axis: str, title: str) -> tuple[Figure, Axes]:
    figure, axes = new_figure(title, (WIDTH, HEIGHT))
    if axis:
        ticks = sorted({x for curve in curves for x, _ in curve.points})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.set_xlabel(axis.replace(".", " "))
    else:
        results = curves[0].results
        names = [short_settings(results.info.points[point]) or point for point in results.points]
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    return figure, axes


def _draw_band(axes: Axes, bounds: Mapping[float, Sequence[float]], color: str) -> None:
    low, high = ([pair[side] for pair in bounds.values()] for side in (0, 1))
    axes.fill_between(list(bounds), low, high, color=color, alpha=0.17, linewidth=0)


def _remove_spines(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=MUTED)
