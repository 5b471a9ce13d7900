"""Several evaluations side by side: each at its own best setting, and what lies between them prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from acestep.evaluation.report import tables
from acestep.evaluation.results import NEITHER, Results, comparable, paired
from acestep.evaluation.statistics import holm


@dataclass(frozen=True)
class Difference:
    """A score of another evaluation less that of the first, each at its best setting, over the prompts of both."""

    column: str
    name: str
    change: Mapping[str, Any]
    p_holm: float


def differences(found: Mapping[str, Results]) -> list[Difference]:
    """Headline scores against the first evaluation's; p-values corrected over all of them."""
    first, *others = found.values()
    pairs = [
        (column, name, paired(*values))
        for name, other in zip(list(found)[1:], others, strict=True)
        for column in _judged(first)
        if (values := _shared(column, other, first))
    ]
    corrected = holm([change["p"] for _, _, change in pairs])
    return [Difference(*pair, p) for pair, p in zip(pairs, corrected, strict=True)]


def side_by_side(found: Mapping[str, Results]) -> str:
    """Both as tables; nothing for one evaluation."""
    if len(found) < 2:
        return ""
    first = next(iter(found))
    best = tables.table(["at its best setting", *found], list(_best_scores(found)))
    changes = [(f"{one.column}: {one.name}", tables.change_cells(one.change, one.p_holm)) for one in differences(found)]
    heading = f"<h3>Against {escape(first)}, each at its best setting</h3>"
    told = tables.table(tables.CHANGE_HEAD, changes) if changes else "<p class=facts>They share no scored prompts.</p>"
    return f"<h2>Side by side</h2>{best}{heading}{told}"


def _judged(results: Results) -> list[str]:
    """Scores of which some values are better than others."""
    return [column for column in results.headlines if results.goal(column) != NEITHER]


def _shared(column: str, a: Results, b: Results) -> tuple[list[float], list[float]] | None:
    if not comparable(column, a, b):
        return None
    mine, theirs = a.values(column, a.best(column)), b.values(column, b.best(column))
    shared = sorted(mine.keys() & theirs.keys())
    return ([mine[name] for name in shared], [theirs[name] for name in shared]) if shared else None


def _best_scores(found: Mapping[str, Results]) -> Iterator[tuple[str, list[str]]]:
    first = next(iter(found.values()))
    for column in _judged(first):
        yield column, [_score(column, results, first) for results in found.values()]
    songwise = {column.partition(".")[0] for column in first.headlines}
    for metric in first.set_metrics:
        if metric not in songwise:
            yield metric, [_distance(metric, results, first) for results in found.values()]


def _score(column: str, results: Results, first: Results) -> str:
    if not comparable(column, results, first):
        return _absent(column in results.headlines)
    cell = results.best(column)
    return tables.interval(results.interval(column, cell)) + _setting(results, cell)


def _distance(metric: str, results: Results, first: Results) -> str:
    has = metric in results.set_metrics
    if not has or results.setting.ears.get(metric) != first.setting.ears.get(metric):
        return _absent(has)
    cell, value = results.best_set(metric)
    return f"{value:.4g}{_setting(results, cell)}"


def _setting(results: Results, cell: str) -> str:
    return f"<br><small>{escape(cell)}</small>" if results.setting.cells[cell] else ""


def _absent(has_other_ear: bool) -> str:
    return "<small>another scorer</small>" if has_other_ear else tables.DASH
