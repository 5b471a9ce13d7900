"""How far a command is, in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

from acestep.flow.solvers import Step


@contextmanager
def song_bar(songs: int, before: int = 0) -> Iterator[Callable[[float], None]]:
    """A bar with the time left on standard error, where that is a terminal; gives what moves it to so many songs.

    ``before`` of the ``songs`` are there already.
    """
    console = Console(stderr=True)
    counted = [MofNCompleteColumn()] if songs > 1 else []
    columns = (BarColumn(), *counted, TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("songs", total=songs, completed=before)
        yield lambda done: bar.update(task, completed=done)


def stepping(moved: Callable[[float], None], done: int, songs: int) -> Callable[..., None]:
    """Told of each sampler step of ``songs`` made together after ``done`` others: moves the bar along."""

    def stepped(step: Step, *_: object) -> None:
        moved(done + songs * step.index / step.count)

    return stepped
