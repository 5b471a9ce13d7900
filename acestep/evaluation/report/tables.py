"""The numbers of an evaluation as HTML: cards, tables, differences, what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from acestep.evaluation.results import LOWEST, NEITHER, Results, by_reason
from acestep.evaluation.statistics import Interval
from acestep.evaluation.sweep import CEILING

DASH = "–"
CHANGE_HEAD = ("", "difference", "95 %", "effect d_z", "p, Holm", "prompts to show it")


def cards(results: Results) -> str:
    """One card for each metric: its value at its best setting, and what to compare it with."""
    made = [_song_card(results, column) for column in results.headlines]
    songwise = {column.partition(".")[0] for column in results.headlines}
    made += [_set_card(results, metric) for metric in results.set_metrics if metric not in songwise]
    return f"<section class=cards>{''.join(made)}</section>"


def notes(results: Results) -> str:
    """What the numbers are too few for, which metrics are missing and why, which songs were not made."""
    lines = list(results.summary()["advice"])
    left_out = by_reason(results.setting.left_out)
    lines += [f"left out: {', '.join(names)}: {reason}" for reason, names in left_out.items()]
    excluded = [row for row in results.rows if row.excluded]
    lines += [f"not made: {row.prompt.id} at {row.cell}: {row.excluded}" for row in excluded[:10]]
    lines += [f"and {len(excluded) - 10} more songs that were not made"] if len(excluded) > 10 else []
    unheard = [(metric, reason) for row in results.rows for metric, reason in row.unheard.items()]
    lines += [f"{count} songs unheard by {metric}: {reason}" for (metric, reason), count in Counter(unheard).items()]
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<details class=notes open><summary>notes: {len(lines)}</summary><ul>{items}</ul></details>"


def numbers(results: Results) -> str:
    """Every score and distance under every setting."""
    labels = [*results.cells, *([CEILING] if CEILING in results.sets else [])]
    rows = [(column, [interval(results.interval(column, label)) for label in labels]) for column in results.columns]
    names = dict.fromkeys((m, name) for label in labels for m, v in results.sets.get(label, {}).items() for name in v)
    for metric, name in names:
        found = [results.sets.get(label, {}).get(metric, {}).get(name) for label in labels]
        rows.append((f"{metric}.{name}", [DASH if value is None else f"{value:.4g}" for value in found]))
    rows.append(("hash of settings", [f"<small>{results.decided_by(label)[:12]}</small>" for label in labels]))
    return table(["", *labels], rows)


def differences(results: Results) -> str:
    """Every setting against the first, prompt by prompt; nothing where there is one setting."""
    summary = results.summary()
    rows = [(f"{one['score']} at {one['cell']}", change_cells(one, one["p_holm"])) for one in summary["differences"]]
    rows += [
        (f"{one['distance']} at {one['cell']}", [_signed(one["mean"]), _bounds(one["ci95"]), DASH, DASH, DASH])
        for one in summary["set_differences"]
    ]
    if not rows:
        return ""
    return f"<h2>Against {escape(results.cells[0])}</h2>{table(CHANGE_HEAD, rows)}"


def change_cells(change: Mapping[str, Any], p_holm: float) -> list[str]:
    """What :data:`CHANGE_HEAD` names, of what :func:`acestep.evaluation.results.paired` found."""
    effect, needed = change["effect"], change["prompts_needed"]
    return [
        _signed(change["mean"]),
        _bounds(change["ci95"]),
        DASH if effect is None else f"{effect:+.2f}",
        f"{p_holm:.3g}",
        DASH if needed is None else str(needed),
    ]


def prompt_table(results: Results) -> str:
    """Every prompt's score under every setting, the best prompts first."""
    if not results.headlines:
        return ""
    column = results.headlines[0]
    found = {cell: results.values(column, cell) for cell in results.cells}
    captions = {row.prompt.id: row.prompt.song.caption for row in results.rows}
    rows = [
        (
            f"{name}: {captions[name][:60]}",
            [f"{found[c][name]:.3f}" if name in found[c] else DASH for c in results.cells],
        )
        for name in ranked(results)
    ]
    title = f"{column}, prompt by prompt, from the best to the worst at {results.best(column)}"
    return f"<details><summary>{escape(title)}</summary>{table(['', *results.cells], rows)}</details>"


def settings(results: Results) -> str:
    """All settings, hashes and counts."""
    summary = results.summary()
    text = escape(json.dumps({**summary["setting"], "songs": summary["songs"]}, indent=2))
    return f"<details><summary>everything the numbers depend on</summary><pre>{text}</pre></details>"


def ranked(results: Results) -> list[str]:
    """Prompts with a song, best first by the first score in its best cell."""
    ids = list(dict.fromkeys(row.prompt.id for row in results.rows if row.cell != CEILING and row.path))
    if results.headlines:
        column = results.headlines[0]
        scores, sign = results.values(column, results.best(column)), -1 if results.goal(column) == LOWEST else 1
        ids.sort(key=lambda name: sign * scores.get(name, -sign * 1e9), reverse=True)
    return ids


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Rows of a name, which is text, and of cells, which are HTML."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>" for name, values in rows
    )
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def interval(found: Interval | None) -> str:
    """A mean and its bounds."""
    return DASH if found is None else f"{found.mean:.3f} <small>{_bounds(found.bounds)}</small>"


def _song_card(results: Results, column: str) -> str:
    best = results.best(column)
    found, ceiling = results.interval(column, best), results.interval(column, CEILING)
    shuffled = results.interval(column, best, shuffled=True)
    goal = results.goal(column)
    lines = [f"at {best}", f"95 % {_bounds(found.bounds)}" if found else "", f"n {found.n}" if found else ""]
    lines += [f"shuffled {shuffled.mean:.3f}" if shuffled and goal != NEITHER else ""]
    lines += [f"ceiling {ceiling.mean:.3f}" if ceiling else "", "lower is better" if goal == LOWEST else ""]
    return _card(column.replace(".", " · "), f"{found.mean:.3f}" if found else DASH, lines)


def _set_card(results: Results, metric: str) -> str:
    headline = results.set_headline(metric)
    best, value = results.best_set(metric)
    is_low = results.goal(metric) == LOWEST
    ceiling = results.sets.get(CEILING, {}).get(metric, {})
    error = results.sets[best][metric].get("error")
    lines = [f"at {best}", f"± {error:.3f} (standard error)" if error is not None else ""]
    lines += [f"ceiling {ceiling[headline]:.3f}" if headline in ceiling else "", "lower is better" if is_low else ""]
    return _card(metric, f"{value:.3f}", lines)


def _card(name: str, value: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines if line)
    return f"<div class=card><h4>{escape(name)}</h4><strong>{escape(value)}</strong><ul>{items}</ul></div>"


def _bounds(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"
