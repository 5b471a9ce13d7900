"""What a request may ask for: tasks, tracks, spans and strengths. Knows the rules; opens no file.

Source of the tasks and tracks: upstream ``constants.py`` (``TASK_TYPES``, ``TRACK_NAMES``) and ``inference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from acestep.songs.metadata import checked
from acestep.songs.song import Request, Song, shown


@dataclass(frozen=True)
class Task:
    """What a task wants beside the words.

    Attributes:
        source: whether it starts from a recording.
        span: whether it may be told to make only a part.
        tracks: how many tracks it takes at most.
        trained: whether SFT and turbo checkpoints learned it, and not base ones alone.
    """

    source: bool = True
    span: bool = False
    tracks: int = 0
    trained: bool = True


TASKS = {
    "text2music": Task(source=False),
    "cover": Task(),
    "cover-nofsq": Task(),
    "repaint": Task(span=True),
    "edit": Task(),
    "extract": Task(tracks=1, trained=False),
    "lego": Task(span=True, tracks=1, trained=False),
    "complete": Task(tracks=12, trained=False),
}
TRACKS = (
    "woodwinds", "brass", "fx", "synth", "strings", "percussion", "keyboard", "guitar", "bass", "drums",
    "backing_vocals", "vocals",
)  # fmt: skip
FOLLOWS_SOURCE = ("cover", "cover-nofsq", "repaint", "extract", "lego", "complete")
USED_BY = {
    **dict.fromkeys(("source_caption", "source_lyrics", "edit_start", "edit_stop", "edit_draws"), ("edit",)),
    **dict.fromkeys(("repaint_strength", "splice"), ("repaint", "lego")),
    "cover_strength": FOLLOWS_SOURCE,
    "source_strength": FOLLOWS_SOURCE,
    "retake": ("text2music", *FOLLOWS_SOURCE),
}
"""Fields that only some tasks hear; set for another, they would be ignored without a word."""
SPLICES = ("reconstruction", "source", "none")
SHARES = ("cover_strength", "source_strength", "repaint_strength", "edit_start", "edit_stop", "retake")
CAPTION_CHARACTERS = 4096
"""Captions of up to 512 characters were trained; this keeps a whole book from being read as one."""


def checked_request(song: Song) -> Song:
    """``song`` with its words in the trained form; ``ValueError`` names the field that cannot be."""
    _check_text(song)
    if not isinstance(song, Request):
        return checked(song)
    task = TASKS[_one_of("task", song.task, tuple(TASKS))]
    _check_source(song, task)
    for key in SHARES:
        if not 0 <= getattr(song, key) <= 1:
            raise ValueError(f"song.{key}={getattr(song, key)}: need 0 to 1")
    if song.edit_start > song.edit_stop:
        raise ValueError(f"song.edit_start={song.edit_start:g}: need at most song.edit_stop={song.edit_stop:g}")
    if song.edit_draws < 1:
        raise ValueError(f"song.edit_draws={song.edit_draws}: need at least 1")
    _one_of("splice", song.splice, SPLICES)
    _check_used(song)
    checked(Song(seed=song.retake_seed))
    return checked(replace(song, tracks=_checked_tracks(song.tracks, song.task, task.tracks)))


def lead_in(song: Song) -> float:
    """Seconds that a repaint begins before its source."""
    return max(0.0, -song.start) if isinstance(song, Request) and song.start is not None else 0.0


def _check_text(song: Song) -> None:
    for key in ("caption", "lyrics"):
        text = getattr(song, key)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"song.{key}: holds half a character at position {error.start}; write it as UTF-8"
            ) from error
        if "\0" in text:
            raise ValueError(f"song.{key}: holds a zero character at position {text.index(chr(0))}; remove it")
    if len(song.caption) > CAPTION_CHARACTERS:
        raise ValueError(
            f"song.caption: has {len(song.caption)} characters; need at most {CAPTION_CHARACTERS}; some 500 are best"
        )


def _check_source(song: Request, task: Task) -> None:
    if task.source and not song.source:
        raise ValueError(f"song.source: task {song.task} starts from a recording; name an audio file")
    if song.source and not task.source:
        raise ValueError(
            f"song.source={shown(song.source)}: task {song.task} starts from none; leave it out or add song.task=cover"
        )
    if song.codes and task.source:
        raise ValueError(f"song.codes: task {song.task} has its source in their place; leave one of both out")
    for key in ("start", "end"):
        value = getattr(song, key)
        if value is not None and not task.span:
            raise ValueError(f"song.{key}={value:g}: only repaint and lego make a part of a song; leave it out")
        if value is not None and not math.isfinite(value):
            raise ValueError(f"song.{key}={value}: need a number of seconds")
    if song.end is not None and song.end <= max(song.start or 0.0, 0.0):
        raise ValueError(f"song.end={song.end:g}: need more than 0 and than song.start={song.start or 0:g}")
    if song.task == "repaint" and song.start is None and song.end is None:
        raise ValueError("song.start: task repaint needs song.start, song.end or both, in seconds of the source")


def _check_used(song: Request) -> None:
    for key, tasks in USED_BY.items():
        heard = song.task in tasks or (key == "cover_strength" and song.codes)
        if not heard and getattr(song, key) != getattr(Request, key):
            raise ValueError(
                f"song.{key}={shown(getattr(song, key))}: task {song.task} makes no use of it "
                f"(there is one in {', '.join(tasks)}); leave it out"
            )


def _checked_tracks(tracks: Sequence[str], task: str, most: int) -> tuple[str, ...]:
    if len(tracks) > most:
        needs = "takes none" if most == 0 else f"takes {most} at most"
        raise ValueError(f"song.tracks={shown(', '.join(tracks))}: task {task} {needs}")
    return tuple(_one_of("tracks", track.strip().lower().replace(" ", "_"), TRACKS) for track in tracks)


def _one_of(key: str, value: str, known: tuple[str, ...]) -> str:
    if value in known:
        return value
    near = get_close_matches(value, known, n=1, cutoff=0.5)
    raise ValueError(
        f"song.{key}={shown(value)}: {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(known)}"
    )
