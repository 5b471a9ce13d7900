"""A sweep on one page: curves, the best runs with the commands that repeat them, what failed and with which error."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from acestep.evaluation.report.html import gallery, write_page
from acestep.evaluation.report.tables import DASH, table
from acestep.evaluation.series import plain
from acestep.runs.pictures import pictures
from acestep.runs.status import State
from acestep.runs.table import Row, Sweep

BEST_SHOWN = 5


def write_sweep_report(sweep: Sweep) -> Path:
    """``report.html`` and ``plots/`` in the sweep's folder; returns the page's path."""
    drawn = {name.replace("/", "_"): figure for name, figure in pictures(sweep).items()}
    body = "".join([
        f"<p class=facts>{escape(counts(sweep))}</p>",
        f"<details><summary>what all runs share</summary><pre>{escape(' '.join(sweep.shared))}</pre></details>",
        gallery(drawn, sweep.folder / "plots"),
        _best(sweep),
        _unfinished(sweep),
        "<h2>All runs</h2>",
        _all(sweep),
    ])  # fmt: skip
    return write_page(sweep.folder / "report.html", f"Sweep {sweep.folder.name}", body)


def counts(sweep: Sweep) -> str:
    """How many runs ended how."""
    runs = {row.run: row.state for row in sweep.rows}
    numbers = {state: sum(1 for found in runs.values() if found is state) for state in State}
    ended = ", ".join(f"{count} {_word(state)}" for state, count in numbers.items() if count)
    return f"{len(runs)} runs: {ended}"


def _best(sweep: Sweep) -> str:
    ranked = sweep.ranked()[:BEST_SHOWN]
    if not ranked:
        return ""
    goal = "lowest" if sweep.goal == "lowest" else "highest"
    head = ["", *sweep.swept, sweep.metrics[0]]
    rows = [
        (f"{place}. {row.run}", [*_settings(sweep, row), f"{row.numbers[sweep.metrics[0]]:.5g}"])
        for place, row in enumerate(ranked, 1)
    ]
    commands = "".join(f"<pre>{escape(row.command)}</pre>" for row in ranked)
    return (
        f"<h2>Best runs, by the {goal} {escape(sweep.metrics[0])}</h2>{table(head, rows)}"
        f"<details><summary>the commands that repeat them, in this order</summary>{commands}</details>"
    )


def _unfinished(sweep: Sweep) -> str:
    """Runs without a result: the error of each that failed, and the command to try it with."""
    rows = [row for row in sweep.rows if row.state is not State.finished]
    if not rows:
        return ""
    told = "".join(
        f"<article><h3>{escape(row.run)}: {_word(row.state)}</h3><p>{escape(row.error)}</p>"
        f"<pre>{escape(row.command)}</pre></article>"
        for row in rows
    )
    return f"<h2>Not finished</h2><p class=facts>The sweep's own command tries these again.</p>{told}"


def _all(sweep: Sweep) -> str:
    rows = [
        (
            row.run,
            [*_settings(sweep, row), _word(row.state), *_numbers(sweep, row), f"<code>{escape(row.command)}</code>"],
        )
        for row in sweep.rows
    ]
    return table(["", *sweep.swept, "", *sweep.metrics, "command"], rows)


def _settings(sweep: Sweep, row: Row) -> list[str]:
    return [escape(plain(row.settings.get(key))) for key in sweep.swept]


def _numbers(sweep: Sweep, row: Row) -> Sequence[str]:
    return [f"{row.numbers[name]:.5g}" if name in row.numbers else DASH for name in sweep.metrics]


def _word(state: State) -> str:
    return "unfinished" if state is State.running else state.value
