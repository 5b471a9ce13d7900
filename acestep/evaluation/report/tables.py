"""Numbers of an evaluation as HTML: overview cards, score tables, differences, warnings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from acestep.evaluation.results import LOWEST, NEITHER, Results, metrics_by_reason
from acestep.evaluation.statistics import Interval
from acestep.evaluation.sweep import CEILING
from acestep.page import details, html_table

DASH = "–"
DIFFERENCE_HEAD = ("", "difference", "95 % interval", "d_z", "p (Holm)", "prompts for 80 % power")
MAX_EXCLUDED = 10


def overview(results: Results) -> str:
    """A card for each metric: its value at its best sweep point, and what to compare it with."""
    cards = [_score_card(results, column) for column in results.headlines]
    cards += [_set_card(results, metric) for metric in results.set_only_metrics]
    return f"<section class=cards>{''.join(cards)}</section>"


def notes(results: Results) -> str:
    """Sample-size warnings, metrics that did not run, songs that failed; empty without any."""
    lines = list(results.summary()["advice"])
    left_out = metrics_by_reason(results.info.left_out)
    lines += [f"left out: {', '.join(names)}: {reason}" for reason, names in left_out.items()]
    excluded = [row for row in results.rows if row.excluded]
    lines += [f"failed: {row.prompt.id} at {row.point}: {row.excluded}" for row in excluded[:MAX_EXCLUDED]]
    lines += [f"and {len(excluded) - MAX_EXCLUDED} more songs that failed"] if len(excluded) > MAX_EXCLUDED else []
    unscored = Counter(item for row in results.rows for item in row.unscored.items())
    lines += [f"{count} songs not scored by {metric}: {reason}" for (metric, reason), count in unscored.items()]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return details(f"notes: {len(lines)}", f"<ul>{items}</ul>", " class=notes open")


def score_table(results: Results) -> str:
    """Every score and set distance at every sweep point."""
    points = [*results.points, *([CEILING] if CEILING in results.sets else [])]
    rows = [(name, [format_interval(results.interval(name, point)) for point in points]) for name in results.columns]
    sets = [results.set_columns(point) for point in points]
    names = dict.fromkeys(name for one in sets for name in one)
    rows += [(name, [f"{one[name]:.4g}" if name in one else DASH for one in sets]) for name in names]
    rows.append(("hash of settings", [f"<small>{results.point_hash(point)[:12]}</small>" for point in points]))
    return html_table(["", *points], rows)


def sweep_differences(results: Results) -> str:
    """Every sweep point minus the first, paired by prompt; empty where there is one point."""
    summary = results.summary()
    rows = [(f"{one['score']} at {one['cell']}", difference_cells(one)) for one in summary["differences"]]
    rows += [
        (f"{one['distance']} at {one['cell']}", [f"{one['mean']:+.4f}", _bounds(one["ci95"]), DASH, DASH, DASH])
        for one in summary["set_differences"]
    ]
    return f"<h2>Differences from {escape(results.points[0])}</h2>{html_table(DIFFERENCE_HEAD, rows)}" if rows else ""


def difference_cells(difference: Mapping[str, Any]) -> list[str]:
    """Cells under :data:`DIFFERENCE_HEAD` of a result of ``statistics.paired_test`` with its ``p_holm``."""
    effect, needed = difference["effect"], difference["prompts_needed"]
    return [
        f"{difference['mean']:+.4f}",
        _bounds(difference["ci95"]),
        DASH if effect is None else f"{effect:+.2f}",
        f"{difference['p_holm']:.3g}",
        DASH if needed is None else str(needed),
    ]


def prompt_table(results: Results) -> str:
    """The first score of every prompt at every sweep point, the best prompts first."""
    if not results.headlines:
        return ""
    column = results.headlines[0]
    scores = [results.values(column, point) for point in results.points]
    captions = {row.prompt.id: row.prompt.song.caption for row in results.rows}
    rows = [
        (f"{name}: {captions[name][:60]}", [f"{one[name]:.3f}" if name in one else DASH for one in scores])
        for name in ranked_prompts(results)
    ]
    title = f"{column} of every prompt, from the best to the worst at {results.best(column)}"
    return details(title, html_table(["", *results.points], rows))


def info_block(results: Results) -> str:
    """All settings, hashes and counts."""
    summary = results.summary()
    text = escape(json.dumps({**summary["setting"], "songs": summary["songs"]}, indent=2))
    return details("all settings, hashes and counts", f"<pre>{text}</pre>")


def ranked_prompts(results: Results) -> list[str]:
    """Prompts with a song, best first by the first score at its best sweep point."""
    ids = list(dict.fromkeys(row.prompt.id for row in results.rows if row.point != CEILING and row.path))
    if results.headlines:
        column = results.headlines[0]
        scores, sign = results.values(column, results.best(column)), -1 if results.goal(column) == LOWEST else 1
        ids.sort(key=lambda name: sign * scores.get(name, -sign * 1e9), reverse=True)
    return ids


def format_interval(interval: Interval | None) -> str:
    """A mean and its bounds as HTML."""
    return DASH if interval is None else f"{interval.mean:.3f} <small>{_bounds(interval.bounds)}</small>"


def _score_card(results: Results, column: str) -> str:
    best, goal = results.best(column), results.goal(column)
    score, ceiling = results.interval(column, best), results.interval(column, CEILING)
    shuffled = results.interval(column, best, shuffled=True) if goal != NEITHER else None
    lines = [f"at {best}", *([f"95 % interval {_bounds(score.bounds)}", f"n {score.n}"] if score else [])]
    lines += [f"shuffled {shuffled.mean:.3f}"] if shuffled else []
    lines += [f"ceiling {ceiling.mean:.3f}"] if ceiling else []
    return _overview_card(column.replace(".", " · "), f"{score.mean:.3f}" if score else DASH, lines, goal)


def _set_card(results: Results, metric: str) -> str:
    headline = results.set_headline(metric)
    best, value = results.best_set(metric)
    ceiling, error = results.set_scores(CEILING, metric), results.set_scores(best, metric).get("error")
    lines = [f"at {best}", *([f"± {error:.3f} (standard error)"] if error is not None else [])]
    lines += [f"ceiling {ceiling[headline]:.3f}"] if headline in ceiling else []
    return _overview_card(metric, f"{value:.3f}", lines, results.goal(metric))


def _overview_card(name: str, value: str, lines: Sequence[str], goal: str) -> str:
    lines = [*lines, *(["lower is better"] if goal == LOWEST else [])]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<div class=card><h4>{escape(name)}</h4><strong>{escape(value)}</strong><ul>{items}</ul></div>"


def _bounds(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
