"""Pictures of an evaluation: scores with their bands over the sweep, distances, and every factor beside its chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from acestep.evaluation.cells import CEILING
from acestep.evaluation.results import Results
from acestep.evaluation.statistics import Interval
from acestep.files import atomic

INK, MUTED, ACCENT, WARM, GRID = "#1b2430", "#6b7684", "#2f6fde", "#d9822b", "#e3e7ec"
OTHERS = ("#3f9c6b", "#9b59b6", "#c0392b")


def figures(results: Results, compare: Mapping[str, Results]) -> dict[str, Figure]:
    """Every picture that these results allow, by file name; curves of ``compare`` over the same sweep go with them."""
    same = {
        name: other
        for name, other in compare.items()
        if len(axis_of(other)[1]) > 1 and axis_of(other)[0] == axis_of(results)[0]
    }
    drawn = {}
    if len(results.cells) > 1:
        drawn |= {column.replace(".", "_"): _curve(results, column, same) for column in results.headlines}
        drawn |= {metric: _distance(results, metric, same) for metric in _set_metrics(results)}
    for metric, chance in results.setting.chance.items():
        factors = [name for name in chance if f"{metric}.{name}" in results.columns][1:]
        if factors:
            drawn[f"{metric}_factors"] = _factors(results, metric, factors)
    return drawn


def save(figure: Figure, path: Path) -> None:
    """Write ``path`` as PNG, and the same as SVG beside it."""
    for suffix in (".png", ".svg"):
        with atomic(path.with_suffix(suffix)) as aside:
            figure.savefig(aside, dpi=150, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)


def svg(figure: Figure) -> str:
    """The picture as an ``<svg>`` element."""
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def axis_of(results: Results) -> tuple[str, list[float], list[str]]:
    """Name, positions and tick labels of the sweep: its numbers if one numeric field was swept, else ranks."""
    settings = [results.setting.cells[label] for label in results.cells]
    paths = list(settings[0])
    if len(paths) == 1 and all(isinstance(cell[paths[0]], int | float) for cell in settings):
        values = [float(cell[paths[0]]) for cell in settings]
        return paths[0].replace(".", " "), values, [f"{value:g}" for value in values]
    return (
        "",
        list(map(float, range(len(settings)))),
        [", ".join(f"{v}" for v in c.values()) or "all" for c in settings],
    )


def _curve(results: Results, column: str, compare: Mapping[str, Results]) -> Figure:
    figure, axes = _axes(results, f"{column.replace('.', ' · ')}: mean over prompts, 95 % interval")
    points = _points(results, column)
    at, means = [x for x, _ in points], [interval.mean for _, interval in points]
    low, high = [interval.low for _, interval in points], [interval.high for _, interval in points]
    axes.fill_between(at, low, high, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(at, means, color=ACCENT, marker="o", linewidth=2, label="generated")
    for (name, other), color in zip(compare.items(), OTHERS, strict=False):
        found = _points(other, column)
        axes.fill_between(
            [x for x, _ in found],
            [i.low for _, i in found],
            [i.high for _, i in found],
            color=color,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot([x for x, _ in found], [i.mean for _, i in found], color=color, marker="o", linewidth=1.5, label=name)
    control = _points(results, column, shuffled=True)
    if control:
        axes.plot(
            [x for x, _ in control], [i.mean for _, i in control], color=WARM, linewidth=1.2, label="prompts shuffled"
        )
    metric, _, name = column.partition(".")
    if name in results.setting.chance.get(metric, {}):
        axes.axhline(results.setting.chance[metric][name], color=MUTED, linestyle=":", linewidth=1.2, label="chance")
    ceiling = results.interval(column, CEILING)
    if ceiling:
        axes.axhline(ceiling.mean, color=MUTED, linestyle="--", linewidth=1.2, label="recordings, coded")
    return _finished(figure, axes)


def _distance(results: Results, metric: str, compare: Mapping[str, Results]) -> Figure:
    figure, axes = _axes(results, f"{metric}: distance to the recordings, lower is closer")
    headline = next(name for cell in results.cells for name in results.sets.get(cell, {}).get(metric, {}))
    for (name, other), color in zip({"generated": results, **compare}.items(), (ACCENT, *OTHERS), strict=False):
        points = _values(other, metric, headline)
        axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker="o", linewidth=2, label=name)
    far, errors = _values(results, metric, "infinity"), _values(results, metric, "infinity_error")
    if far:
        at, values = zip(*far, strict=True)
        axes.errorbar(
            at,
            values,
            [e for _, e in errors],
            color=WARM,
            marker="o",
            linewidth=1.2,
            capsize=3,
            label="for infinitely many songs",
        )
    ceiling = results.sets.get(CEILING, {}).get(metric, {})
    if headline in ceiling:
        axes.axhline(ceiling[headline], color=MUTED, linestyle="--", linewidth=1.2, label="recordings, coded")
    return _finished(figure, axes)


def _points(results: Results, column: str, shuffled: bool = False) -> list[tuple[float, Interval]]:
    found = [
        (x, results.interval(column, cell, shuffled))
        for x, cell in zip(axis_of(results)[1], results.cells, strict=True)
    ]
    return [(x, interval) for x, interval in found if interval]


def _values(results: Results, metric: str, name: str) -> list[tuple[float, float]]:
    cells = [results.sets.get(cell, {}).get(metric, {}) for cell in results.cells]
    return [(x, cell[name]) for x, cell in zip(axis_of(results)[1], cells, strict=True) if name in cell]


def _factors(results: Results, metric: str, factors: Sequence[str]) -> Figure:
    best = results.best(f"{metric}.{next(iter(results.setting.chance[metric]))}")
    figure = Figure(figsize=(7.2, 0.5 * len(factors) + 1.2), layout="constrained")
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
    axes.set_title(f"{metric} by factor at {best}", loc="left", fontsize=11, color=INK)
    axes.grid(axis="x", color=GRID)
    return _finished(figure, axes)


def _set_metrics(results: Results) -> list[str]:
    return list(dict.fromkeys(metric for cell in results.cells for metric in results.sets.get(cell, {})))


def _axes(results: Results, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    name, positions, labels = axis_of(results)
    axes.set_xticks(positions, labels)
    axes.set_xlabel(name)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.grid(color=GRID)
    return figure, axes


def _finished(figure: Figure, axes: Axes) -> Figure:
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, colors=MUTED)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=4)
    return figure
