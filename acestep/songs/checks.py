"""Validation of requests: tasks, tracks, spans and strengths. Opens no file.

Source of the tasks and tracks: upstream ``constants.py`` (``TASK_TYPES``, ``TRACK_NAMES``) and ``inference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from acestep.songs.metadata import validate_song
from acestep.songs.song import AnySong, Request, Song, shorten


@dataclass(frozen=True)
class Task:
    """Inputs of a task beside the text.

    Attributes:
        source: whether it needs a source recording.
        span: whether it accepts ``start`` and ``end``.
        tracks: largest number of tracks.
        trained: whether SFT and turbo checkpoints were trained on it, not only base checkpoints.
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
"""Fields that only some tasks use; with any other task, a value other than the default is an error."""
SPLICES = ("reconstruction", "source", "none")
SHARES = ("cover_strength", "source_strength", "repaint_strength", "edit_start", "edit_stop", "retake")
CAPTION_CHARACTERS = 4096
"""Training captions have up to 512 characters; this only rejects obvious mistakes."""


def validate_request(song: AnySong) -> AnySong:
    """``song`` with its metadata normalised, every field checked.

    Raises:
        ValueError: names the first invalid field.
    """
    _check_text(song)
    if not isinstance(song, Request):
        return validate_song(song)
    task = TASKS[_validate_choice("task", song.task, tuple(TASKS))]
    _check_source(song, task)
    for key in SHARES:
        if not 0 <= getattr(song, key) <= 1:
            raise ValueError(f"song.{key}={getattr(song, key)}: need 0 to 1")
    if song.edit_start > song.edit_stop:
        raise ValueError(f"song.edit_start={song.edit_start:g}: need at most song.edit_stop={song.edit_stop:g}")
    if song.edit_draws < 1:
        raise ValueError(f"song.edit_draws={song.edit_draws}: need at least 1")
    _validate_choice("splice", song.splice, SPLICES)
    _check_used(song)
    validate_song(Song(seed=song.retake_seed))
    return validate_song(replace(song, tracks=_normalize_tracks(song.tracks, song.task, task.tracks)))


def lead_in(song: Song) -> float:
    """Seconds of new audio before the source."""
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
            f"song.source={shorten(song.source)}: task {song.task} takes none; leave it out or add song.task=cover"
        )
    if song.codes and task.source:
        raise ValueError(f"song.codes: task {song.task} takes a source instead; leave one of both out")
    for key in ("start", "end"):
        value = getattr(song, key)
        if value is not None and not task.span:
            raise ValueError(f"song.{key}={value:g}: only tasks repaint and lego take a span; leave it out")
        if value is not None and not math.isfinite(value):
            raise ValueError(f"song.{key}={value}: need a number of seconds")
    if song.end is not None and song.end <= max(song.start or 0.0, 0.0):
        raise ValueError(f"song.end={song.end:g}: need more than 0 and than song.start={song.start or 0:g}")
    if song.task == "repaint" and song.start is None and song.end is None:
        raise ValueError("song.start: task repaint needs song.start, song.end or both, in seconds of the source")


def _check_used(song: Request) -> None:
    for key, tasks in USED_BY.items():
        is_used = song.task in tasks or (key == "cover_strength" and song.codes)
        if not is_used and getattr(song, key) != getattr(Request, key):
            raise ValueError(
                f"song.{key}={shorten(getattr(song, key))}: not used by task {song.task}, only by {', '.join(tasks)}; "
                "leave it out"
            )


def _normalize_tracks(tracks: Sequence[str], task: str, limit: int) -> tuple[str, ...]:
    if len(tracks) > limit:
        needs = f"takes at most {limit}" if limit else "takes none"
        raise ValueError(f"song.tracks={shorten(', '.join(tracks))}: task {task} {needs}")
    return tuple(_validate_choice("tracks", track.strip().lower().replace(" ", "_"), TRACKS) for track in tracks)


def _validate_choice(key: str, value: str, known: tuple[str, ...]) -> str:
    if value in known:
        return value
    near = get_close_matches(value, known, n=1, cutoff=0.5)
    raise ValueError(
        f"song.{key}={shorten(value)}: {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(known)}"
    )
