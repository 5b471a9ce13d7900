"""Several evaluations side by side: each at its own best sweep point, and paired differences from the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from acestep.evaluation.report.tables import DASH, DIFFERENCE_HEAD, difference_cells, format_interval
from acestep.evaluation.results import NEITHER, Results, comparable
from acestep.evaluation.statistics import paired_tests
from acestep.page import html_table


def differences_from_first(named: Mapping[str, Results]) -> dict[tuple[str, str], dict[str, Any]]:
    """Results of ``statistics.paired_tests`` against the first evaluation, by headline score and name.

    Each evaluation is taken at its best sweep point, over the prompts that it shares with the first.
    """
    first, *others = named.values()
    return paired_tests({
        (column, name): other.paired_values(column, other.best(column), first, first.best(column))
        for name, other in zip(list(named)[1:], others, strict=True)
        for column in _directed_headlines(first)
        if comparable(column, other, first)
    })  # fmt: skip


def side_by_side(named: Mapping[str, Results]) -> str:
    """Best scores and differences as HTML; empty for one evaluation."""
    if len(named) < 2:
        return ""
    differences = differences_from_first(named).items()
    rows = [(f"{column}: {name}", difference_cells(test)) for (column, name), test in differences]
    table = html_table(DIFFERENCE_HEAD, rows) if rows else "<p class=facts>They share no scored prompts.</p>"
    heading = f"<h3>Differences from {escape(next(iter(named)))}, each at its best sweep point</h3>"
    best = html_table(["at the best sweep point", *named], _best_scores(named))
    return f"<h2>Side by side</h2>{best}{heading}{table}"


def _directed_headlines(results: Results) -> list[str]:
    """Headline scores of which high or low values are good."""
    return [column for column in results.headlines if results.goal(column) != NEITHER]


def _best_scores(named: Mapping[str, Results]) -> Iterator[tuple[str, list[str]]]:
    first = next(iter(named.values()))
    for column in _directed_headlines(first):
        yield column, [_score_cell(column, results, first) for results in named.values()]
    for metric in first.set_only_metrics:
        yield metric, [_set_cell(metric, results, first) for results in named.values()]


def _score_cell(column: str, results: Results, first: Results) -> str:
    if not comparable(column, results, first):
        return _absent(column in results.headlines)
    point = results.best(column)
    return format_interval(results.interval(column, point)) + _point_label(results, point)


def _set_cell(metric: str, results: Results, first: Results) -> str:
    has = metric in results.set_metrics
    if not has or results.info.extractors.get(metric) != first.info.extractors.get(metric):
        return _absent(has)
    point, value = results.best_set(metric)
    return f"{value:.4g}{_point_label(results, point)}"


def _point_label(results: Results, point: str) -> str:
    return f"<br><small>{escape(point)}</small>" if results.info.points[point] else ""


def _absent(has_other_extractor: bool) -> str:
    return "<small>another feature extractor</small>" if has_other_extractor else DASH
