"""Many songs from a list: each by itself, so that what cannot be made keeps nothing else from being made."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from acestep.audio.audio import SUBTYPES
from acestep.cli.entry import Entry, read_record, sidecar_of
from acestep.cli.plan_songs import Planning
from acestep.cli.progress import song_bar, stepping
from acestep.cli.song_writer import Studio, file_name, peak, writable
from acestep.songs.lists import Line, read_songs, request_of

SOME_FAILED, NONE_MADE = 3, 1
"""Exit statuses."""
UNCOMPARED = ("device", "memory", "batch_size", "song")
"""Settings that may differ between a song that is there and one that is asked for."""


def make_many(
    call: dict[str, Any], settings: dict[str, Any], planning: Planning | None, tell: Callable[[str], None]
) -> int:
    """Make the songs of the list ``call["songs"]`` in the folder ``call["out"]``; returns the exit status."""
    started = perf_counter()
    folder = Path(call["out"] or "out")
    if folder.suffix.lower() in SUBTYPES or folder.is_file():
        raise ValueError(f"out={folder}: songs={call['songs']} lists many songs, so this has to be a folder")
    writable(folder, folder)
    if f".{call['format']}" not in SUBTYPES:
        raise ValueError(f"format={call['format']}: use one of {', '.join(name[1:] for name in SUBTYPES)}")
    shared = request_of({"adapters": settings.pop("adapters", None) or None}, Path()).adapters
    entries = _entries(read_songs(call["songs"]), folder, call["format"], shared)
    if planning:
        planning(entries, settings, tell, anew=call["overwrite"])
    going = [entry for entry in entries if entry.goes_on]
    if going:
        studio = Studio.open(settings, [entry.request for entry in going], shared)
        for entry in going:
            _resolve(entry, studio, call["overwrite"])
        going = [entry for entry in going if entry.goes_on]
        _make_all(going, studio, call["keep_latents"], len(entries) - len(going), tell)
    return _close(entries, going, f"{perf_counter() - started:.1f} s; at most {peak(settings['device'])}", tell)


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
        studio.pipeline.bank.prepare(entry.request.adapters or ())
    except (ValueError, OSError, OverflowError) as error:
        entry.fails(error)
        return
    if overwrite or not (entry.out.exists() or sidecar_of(entry.out).exists()):
        return
    asked, there = studio.record(entry.request), read_record(entry.out).get("settings")
    alike = there is not None and _comparable(there) == _comparable(json.loads(json.dumps(asked)))
    if entry.out.exists() and alike:
        entry.is_there = True
    elif entry.out.exists() or there is None:
        entry.error = f"out={entry.out}: exists and is another song; name another folder, or add overwrite=true"


def _make_all(
    going: Sequence[Entry], studio: Studio, keep_latents: bool, before: int, tell: Callable[[str], None]
) -> None:
    size = 1 if keep_latents else studio.settings["batch_size"]
    with song_bar(before + len(going), before) as moved:
        for start in range(0, len(going), size):
            group, done = going[start : start + size], before + start
            stepped = stepping(moved, done, len(group))
            for entry, seconds, took in _make(group, studio, keep_latents, stepped):
                tell(f"{entry.out}  ({seconds:.1f} s of music in {took:.1f} s)")
            moved(done + len(group))


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
            studio.save(audio, entry.out, entry.planned)
            left.pop(0)
            yield entry, audio.seconds, perf_counter() - started
            started = perf_counter()
    except (ValueError, OSError) as error:
        if len(group) == 1:
            group[0].fails(error)
            return
        for entry in left:
            yield from _make([entry], studio, keep_latents, on_step)


def _close(entries: Sequence[Entry], going: Sequence[Entry], took: str, tell: Callable[[str], None]) -> int:
    """The closing table: what failed and why, and how many did not."""
    failed = [entry for entry in entries if entry.error]
    made = sum(not entry.error for entry in going)
    there, waits = (sum(getattr(entry, key) for entry in entries) for key in ("is_there", "waits"))
    width = max((len(entry.name) for entry in failed), default=0)
    for entry in failed:
        tell(f"failed  {entry.number:>4}  {entry.name:<{width}}  {entry.error}")
    planned = f"{waits} planned, " if waits else ""
    tell(f"{planned}{made} made, {there} there before, {len(failed)} failed, in {took}")
    if not failed:
        return 0
    return SOME_FAILED if made or there or waits else NONE_MADE


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    song = {key: value for key, value in settings.get("song", {}).items() if key != "name"}
    return {key: value for key, value in settings.items() if key not in UNCOMPARED} | {"song": song}
