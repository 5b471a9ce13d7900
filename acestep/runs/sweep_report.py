"""The report of a sweep as one HTML page: plots, best runs with commands that repeat them, failed runs, all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from acestep.evaluation.report.plots import COLORS, INK, MUTED, figure_gallery, finish_figure, new_figure, numeric_axes
from acestep.evaluation.report.tables import DASH
from acestep.evaluation.report.terms import TERMS
from acestep.evaluation.results import HIGHEST, LOWEST
from acestep.evaluation.sweep import format_value, is_number
from acestep.page import TERMS_LINK, details, html_table, terms_section, write_page
from acestep.runs.status import RunState
from acestep.runs.table import RunRow, SweepTable, sort_key

BEST_RUNS = 5
LABELLED_RUNS = 3
MAX_METRICS = 6
DETAIL_PREFIXES = ("val/loss_", "train/")
"""Metrics that the table holds and no plot shows."""
MAX_TICKS = 8
SIZE = (7.2, 3.9)
BEST_SHADE, WORST_SHADE = 0.95, 0.1
"""Positions on the colour map."""
UNFINISHED = "unfinished"
SWEEP_TERMS = {
    "val/loss": "mean loss over the held-out songs at fixed noise levels",
    "score/": "prefix of metrics of songs that were generated while training",
    UNFINISHED: "the run was interrupted before it could report how it ended; the sweep's own command resumes it",
}


def write_sweep_report(sweep: SweepTable) -> Path:
    """Write ``report.html`` and ``plots/`` into the sweep's folder; returns the page's path."""
    figures = {name.replace("/", "_"): figure for name, figure in sweep_figures(sweep).items()}
    body = "".join([
        f"<p class=facts>{escape(_state_counts(sweep))} · {TERMS_LINK}</p>",
        details("settings that all runs share", f"<pre>{escape(' '.join(sweep.shared))}</pre>"),
        figure_gallery(figures, sweep.folder / "plots"),
        _best_runs(sweep),
        _unfinished_runs(sweep),
        "<h2>All runs</h2>",
        _all_runs(sweep),
        terms_section(SWEEP_TERMS | TERMS),
    ])  # fmt: skip
    return write_page(sweep.folder / "report.html", f"Sweep {sweep.folder.name}", body)


def sweep_figures(sweep: SweepTable) -> dict[str, Figure]:
    """Every plot of the sweep's finished runs, by name."""
    rows = sweep.ranked()
    if not rows:
        return {}
    figures: dict[str, Figure] = {}
    axis = _sweep_axis(sweep, rows)
    if axis:
        names = [name for name in sweep.metrics if not name.startswith(DETAIL_PREFIXES)][:MAX_METRICS]
        figures |= {f"curve_{name}": _metric_figure(sweep, rows, axis, name) for name in names}
    if sweep.swept and len(rows) > 1:
        figures["parallel_coordinates"] = _parallel_coordinates(sweep, rows)
    if any(sweep.metrics[0] in curves for curves in sweep.curves.values()):
        figures["on_the_way"] = _training_curves(sweep, rows)
    return figures


def _state_counts(sweep: SweepTable) -> str:
    """How many runs ended in each state."""
    states = Counter({row.run: row.state for row in sweep.rows}.values())
    counts = ", ".join(f"{states[state]} {_state_name(state)}" for state in RunState if states[state])
    return f"{states.total()} runs: {counts}"


def _best_runs(sweep: SweepTable) -> str:
    ranked = sweep.ranked()[:BEST_RUNS]
    if not ranked:
        return ""
    metric, goal = sweep.metrics[0], LOWEST if sweep.goal == LOWEST else HIGHEST
    rows = [
        (f"{rank}. {row.run}", [*_setting_cells(sweep, row), f"{row.numbers[metric]:.5g}"])
        for rank, row in enumerate(ranked, 1)
    ]
    commands = "".join(f"<pre>{escape(row.command)}</pre>" for row in ranked)
    return (
        f"<h2>Best runs, by the {goal} {escape(metric)}</h2>{html_table(['', *sweep.swept, metric], rows)}"
        f"{details('commands that repeat them, in this order', commands)}"
    )


def _unfinished_runs(sweep: SweepTable) -> str:
    """Runs without a result, with the error of each that failed and the command that repeats it."""
    articles = "".join(
        f"<article><h3>{escape(row.run)}: {_state_name(row.state)}</h3><p>{escape(row.error)}</p>"
        f"<pre>{escape(row.command)}</pre></article>"
        for row in sweep.rows
        if row.state is not RunState.finished
    )
    heading = "<h2>Not finished</h2><p class=facts>The sweep's own command runs these again.</p>"
    return heading + articles if articles else ""


def _all_runs(sweep: SweepTable) -> str:
    def cells(row: RunRow) -> list[str]:
        numbers = [f"{row.numbers[name]:.5g}" if name in row.numbers else DASH for name in sweep.metrics]
        return [*_setting_cells(sweep, row), _state_name(row.state), *numbers, f"<code>{escape(row.command)}</code>"]

    head = ["", *sweep.swept, "", *sweep.metrics, "command"]
    return html_table(head, [(row.run, cells(row)) for row in sweep.rows])


def _setting_cells(sweep: SweepTable, row: RunRow) -> list[str]:
    return [escape(format_value(row.settings.get(key))) for key in sweep.swept]


def _state_name(state: RunState) -> str:
    return UNFINISHED if state is RunState.running else state.value


def _sweep_axis(sweep: SweepTable, rows: Sequence[RunRow]) -> str:
    """The swept key with most numbers for the x axis; the first key where none has numbers."""
    values = {key: {row.settings.get(key) for row in rows} for key in sweep.swept}
    return next(iter([*numeric_axes(values), *sweep.swept]), "")


def _metric_figure(sweep: SweepTable, rows: Sequence[RunRow], axis: str, metric: str) -> Figure:
    figure, axes = new_figure(f"{metric} over {axis}", SIZE)
    lines: dict[str, list[RunRow]] = {}
    for row in rows:
        lines.setdefault(_run_label(sweep, row, axis), []).append(row)
    ticks = {format_value(value): float(x) for x, value in enumerate(_sorted_values(rows, axis))}
    for (name, line), color in zip(sorted(lines.items()), cycle(COLORS), strict=False):
        points = sorted(
            (ticks[format_value(row.settings.get(axis))], row.numbers[metric]) for row in line if metric in row.numbers
        )
        axes.plot([x for x, _ in points], [y for _, y in points], color=color, marker="o", linewidth=1.8, label=name)
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.set_xlabel(axis)
    return finish_figure(figure, axes, fontsize=8, columns=2)


def _parallel_coordinates(sweep: SweepTable, rows: Sequence[RunRow]) -> Figure:
    """Each run as a line through its settings to its metric; dark lines are better."""
    metric = sweep.metrics[0]
    figure, axes = new_figure(f"all settings and {metric}", SIZE)
    numbers = sorted({format_value(row.numbers[metric]): row.numbers[metric] for row in rows}.values())
    heights = [_heights(_sorted_values(rows, key), by_size=False) for key in sweep.swept]
    heights.append(_heights(numbers, by_size=True))
    for x, ticks in enumerate(heights):
        axes.axvline(x, color=MUTED, linewidth=1)
        for text, height in _readable_ticks(ticks).items():
            axes.annotate(text, (x, height), (5, 2), textcoords="offset points", fontsize=8, color=INK)
    for rank, row in reversed(list(enumerate(rows))):
        values = [*(row.settings.get(key) for key in sweep.swept), row.numbers[metric]]
        line = [ticks[format_value(value)] for ticks, value in zip(heights, values, strict=True)]
        axes.plot(range(len(heights)), line, color=_shade(rank, len(rows)), linewidth=2.4 if rank == 0 else 1.4)
    axes.set_xticks(range(len(heights)), [_short_key(name) for name in (*sweep.swept, metric)])
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(heights) - 0.5)
    return finish_figure(figure, axes)


def _training_curves(sweep: SweepTable, rows: Sequence[RunRow]) -> Figure:
    name = sweep.metrics[0]
    figure, axes = new_figure(f"{name} while training, the best run darkest", SIZE)
    for rank, row in reversed(list(enumerate(rows))):
        curve = sweep.curves.get(row.run, {}).get(name, {})
        label = _run_label(sweep, row) if rank < LABELLED_RUNS else None
        axes.plot(list(curve), list(curve.values()), color=_shade(rank, len(rows)), linewidth=1.6, label=label)
    axes.set_xlabel("step")
    return finish_figure(figure, axes, fontsize=8, columns=2)


def _run_label(sweep: SweepTable, row: RunRow, without: str = "") -> str:
    """A run's settings in short, all but one."""
    keys = [key for key in sweep.swept if key != without]
    return ", ".join(f"{_short_key(key)} {format_value(row.settings.get(key))}" for key in keys)


def _short_key(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _sorted_values(rows: Sequence[RunRow], key: str) -> list[Any]:
    values = {format_value(row.settings.get(key)): row.settings.get(key) for row in rows}
    return sorted(values.values(), key=sort_key)


def _heights(values: Sequence[Any], by_size: bool) -> dict[str, float]:
    """Heights from 0 to 1 of sorted values: equally spaced, or in proportion where there are many numbers."""
    if len(values) > 1 and (by_size or len(values) > MAX_TICKS) and all(map(is_number, values)):
        low, high = values[0], values[-1]
        return {format_value(value): (value - low) / (high - low) for value in values}
    return {format_value(value): place / max(len(values) - 1, 1) for place, value in enumerate(values)}


def _readable_ticks(ticks: Mapping[str, float]) -> dict[str, float]:
    """The ticks, or only the lowest and the highest where labels would overlap."""
    items = list(ticks.items())
    is_clear = all(b - a > 0.05 for (_, a), (_, b) in pairwise(items)) and len(items) <= MAX_TICKS
    return dict(items if is_clear else [items[0], items[-1]])


def _shade(rank: int, count: int) -> Any:
    return colormaps["viridis_r"](BEST_SHADE - (BEST_SHADE - WORST_SHADE) * rank / max(count - 1, 1))
