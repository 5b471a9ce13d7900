"""Many songs from a list: each by itself, so that what cannot be made keeps nothing else from being made."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from acestep.audio import SUBTYPES
from acestep.config.studio import Studio, file_name, machine, sidecar_of
from acestep.flow.solvers import Step
from acestep.songs import Line, read_songs, request_of
from acestep.types import Request

SOME_FAILED, NONE_MADE = 3, 1
"""Exit statuses."""
UNCOMPARED = ("device", "memory", "batch_size", "song")
"""Settings that may differ between a song that is there and one that is asked for."""


@dataclass
class Entry:
    """A line of the list on its way: its request, its file, and what became of it."""

    number: int
    request: Request | None
    out: Path | None = None
    error: str = ""
    is_there: bool = False

    @property
    def name(self) -> str:
        """What to call it."""
        return self.out.name if self.out else f"song {self.number}"


def make_many(call: dict[str, Any], settings: dict[str, Any], tell: Callable[[str], None]) -> int:
    """Make the songs of the list ``call["songs"]`` in the folder ``call["out"]``; returns the exit status."""
    started = perf_counter()
    folder = Path(call["out"] or "out")
    if folder.suffix.lower() in SUBTYPES or folder.is_file():
        raise ValueError(f"out={folder}: songs={call['songs']} lists many songs, so this has to be a folder")
    if f".{call['format']}" not in SUBTYPES:
        raise ValueError(f"format={call['format']}: use one of {', '.join(name[1:] for name in SUBTYPES)}")
    shared = request_of({"adapters": settings.pop("adapters", None) or None}, Path()).adapters
    entries = _entries(read_songs(call["songs"]), folder, call["format"], shared)
    asked = [entry.request for entry in entries if entry.request and not entry.error]
    studio = Studio.open(settings | machine(settings["device"], settings["dtype"]), asked)
    for entry in entries:
        if not entry.error:
            _resolve(entry, studio, call["overwrite"])
    waiting = [entry for entry in entries if not entry.error and not entry.is_there]
    _make_all(waiting, studio, call["keep_latents"], len(entries) - len(waiting), tell)
    return _close(entries, waiting, studio, perf_counter() - started, tell)


def _entries(lines: Sequence[Line], folder: Path, suffix: str, shared: Any) -> list[Entry]:
    """Every line with its file in ``folder``; a name that an earlier line has is refused."""
    entries, taken = [], set()
    for line in lines:
        entry = Entry(line.number, line.request, error=line.error)
        if entry.request:
            if entry.request.adapters is None:
                entry.request = replace(entry.request, adapters=shared)
            entry.out = folder / file_name(entry.request, line.number, suffix)
            key = unicodedata.normalize("NFC", entry.out.stem).casefold()
            if key in taken:
                entry.error = f"song.name={entry.request.name}: an earlier song of the list has it; give another"
            taken.add(key)
        entries.append(entry)
    return entries


def _resolve(entry: Entry, studio: Studio, overwrite: bool) -> None:
    """Check the request and look whether its song is there already."""
    try:
        entry.request = studio.pipeline.resolve(entry.request)
        for use in entry.request.adapters or ():
            studio.pipeline.bank.load(use.path)
    except (ValueError, OSError, OverflowError) as error:
        entry.error = " ".join(str(error).split())
        return
    if overwrite or not (entry.out.exists() or sidecar_of(entry.out).exists()):
        return
    asked = studio.record(entry.request, 0.0)["settings"]
    there = _made_by(sidecar_of(entry.out))
    alike = there is not None and _comparable(there) == _comparable(json.loads(json.dumps(asked)))
    if entry.out.exists() and alike:
        entry.is_there = True
    elif entry.out.exists() or there is None:
        entry.error = f"out={entry.out}: exists and is another song; name another folder, or add overwrite=true"


def _make_all(
    waiting: Sequence[Entry], studio: Studio, keep_latents: bool, before: int, tell: Callable[[str], None]
) -> None:
    size = 1 if keep_latents else studio.settings["batch_size"]
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal
    )
    with bar:
        task = bar.add_task("songs", total=before + len(waiting), completed=before)
        for start in range(0, len(waiting), size):
            group = waiting[start : start + size]

            def stepped(step: Step, *_: object, done: int = before + start, songs: int = len(group)) -> None:
                bar.update(task, completed=done + songs * step.index / step.count)

            for entry, seconds, took in _make(group, studio, keep_latents, stepped):
                tell(f"{entry.out}  ({seconds:.1f} s of music in {took:.1f} s)")
            bar.update(task, completed=before + start + len(group))


def _make(
    group: Sequence[Entry], studio: Studio, keep_latents: bool, on_step: Callable[..., None]
) -> Iterator[tuple[Entry, float, float]]:
    """Make and write ``group``; where one of it fails, the rest is made one by one."""
    left = list(group)
    started = perf_counter()
    try:
        latents = group[0].out if keep_latents else None
        for audio in studio.make([entry.request for entry in group], latents, on_step):
            entry = left[0]
            studio.save(audio, entry.out)
            left.pop(0)
            yield entry, audio.seconds, perf_counter() - started
            started = perf_counter()
    except (ValueError, OSError) as error:
        if len(group) == 1:
            group[0].error = " ".join(str(error).split())
            return
        for entry in left:
            yield from _make([entry], studio, keep_latents, on_step)


def _close(
    entries: Sequence[Entry], waiting: Sequence[Entry], studio: Studio, took: float, tell: Callable[[str], None]
) -> int:
    """The closing table: what failed and why, and how many did not."""
    failed = [entry for entry in entries if entry.error]
    made = sum(not entry.error for entry in waiting)
    there = len(entries) - len(failed) - made
    width = max((len(entry.name) for entry in failed), default=0)
    for entry in failed:
        tell(f"failed  {entry.number:>4}  {entry.name:<{width}}  {entry.error}")
    tell(f"{made} made, {there} there before, {len(failed)} failed, in {took:.1f} s; at most {studio.peak()}")
    if not failed:
        return 0
    return SOME_FAILED if made or there else NONE_MADE


def _made_by(sidecar: Path) -> dict[str, Any] | None:
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    song = {key: value for key, value in settings.get("song", {}).items() if key != "name"}
    return {key: value for key, value in settings.items() if key not in UNCOMPARED} | {"song": song}
