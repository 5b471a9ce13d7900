"""Progress bars of the commands, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from acestep.flow.solvers import Step


class _SongsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} songs/s" if task.speed else "")


@contextmanager
def count_progress(total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar that counts songs, with speed and remaining time; yields ``update(done, total=None)``."""
    columns = BarColumn(), MofNCompleteColumn(), _SongsPerSecond(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("songs", total=total)

        def update(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def song_progress(songs: int, before: int = 0) -> Iterator[Callable[[float], None]]:
    """A bar with the remaining time, if standard error is a terminal; yields a function that sets the songs done.

    ``before`` of the ``songs`` are done already.
    """
    console = Console(stderr=True)
    count = [MofNCompleteColumn()] if songs > 1 else []
    columns = (BarColumn(), *count, TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("songs", total=songs, completed=before)
        yield lambda done: bar.update(task, completed=done)


def on_step_progress(set_done: Callable[[float], None], done: int, songs: int) -> Callable[..., None]:
    """An ``on_step`` callback for a batch of ``songs`` songs after ``done`` others."""

    def on_step(step: Step, *_: object) -> None:
        set_done(done + songs * step.index / step.count)

    return on_step
