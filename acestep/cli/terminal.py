"""What commands show in a terminal: progress, and what became of every file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from acestep.files import atomic

if TYPE_CHECKING:
    from acestep.data.bench import Figure
    from acestep.data.preprocess import Outcome
    from acestep.data.store import Row
    from acestep.data.work import Skipped

SOME_SKIPPED = 3
"""Exit status where everything went well except for files that could not be used."""


def songs_progress() -> Progress:
    """A bar that counts songs, with speed and time left, on standard error."""
    columns = BarColumn(), MofNCompleteColumn(), _SongsPerSecond(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


class _SongsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Speed over the last songs."""
        return Text(f"{task.speed:.1f} songs/s" if task.speed else "")


def show_findings(rows: Sequence[Row], skipped: Sequence[Skipped], file: Path | None) -> int:
    """One table of all that a dry run found, also to ``file`` as JSON; returns the exit status."""
    from acestep.data.report import findings

    found = findings(rows)
    table = Table("file", "", "what", title=f"{len(rows)} songs can be used, {len(skipped)} cannot")
    for skip in skipped:
        table.add_row(Text(skip.file), "skip", Text(skip.reason))
    for finding in found:
        table.add_row(Text(finding.file), "look", Text(finding.what))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    facts = {"usable": len(rows), "skipped": [asdict(s) for s in skipped], "findings": [asdict(f) for f in found]}
    _write(file, facts)
    return SOME_SKIPPED if skipped else 0


def show_figures(figures: Iterable[Figure], file: Path | None) -> int:
    """What a benchmark measures, as it comes, and in the end to ``file`` as JSON; returns the exit status."""
    found = {}
    for figure in figures:
        print(figure.line, flush=True)
        found[figure.name] = figure.values
    _write(file, found)
    return 0


def _write(file: Path | None, facts: Mapping[str, Any]) -> None:
    if file:
        with atomic(file) as aside:
            aside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def show_outcome(outcome: Outcome, store: Path, file: Path | None) -> int:
    """What a run of ``preprocess`` did, its counts also to ``file`` as JSON; returns the exit status.

    Raises:
        ValueError: no song could be used.
    """
    _write(file, outcome.to_dict())
    for skip in outcome.skipped:
        print(f"skipped {skip.file}: {skip.reason}")
    print(
        f"{store}: {outcome.stored} songs stored ({outcome.seconds_of_audio:.0f} s), {outcome.kept} there before, "
        f"{len(outcome.skipped)} skipped"
    )
    if outcome.skipped and not outcome.stored + outcome.kept:
        raise ValueError(f"store={store}: no song could be used; the reasons stand above")
    return SOME_SKIPPED if outcome.skipped else 0
