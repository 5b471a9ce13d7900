"""Lyrics whose lines have times: read from LRC text, and cut to the lines that a crop of the song holds.

Times are one for each line of the text, in seconds from the song's start; ``None`` where a line has none of its own,
as a section's ``[verse]``. No times at all are an empty tuple.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

Times = tuple[float | None, ...]

_STAMP = re.compile(r"\[(\d+):(\d+(?:[.:]\d+)?)\]")
_STAMPS = re.compile(rf"(?:{_STAMP.pattern}[ \t]*)+")
_WORD_STAMP = re.compile(r"<\d+:\d+(?:[.:]\d+)?>[ \t]*")
_FACT = re.compile(r"\[(ti|ar|al|au|by|re|ve|la|length|tool|offset|#)\s*:(?P<value>[^\]]*)\]", re.IGNORECASE)
_SECTION = re.compile(r"\[[^\]]*\]")

LONGEST_LINE_SECONDS = 10.0
"""A line is taken to end here where no other follows sooner."""


def read_lrc(text: str) -> tuple[str, Times]:
    """The plain lines of an LRC text and their times; a text without stamps comes back as it is, without times.

    A line with several stamps is sung several times. ``[offset:ms]`` moves all of them (positive is earlier); other
    facts, such as ``[ar:...]``, are no lyrics.
    """
    if not _STAMP.search(text):
        return text, ()
    shift, timed, pending = 0.0, [], list[str]()
    for line in text.splitlines():
        fact = _FACT.fullmatch(line.strip())
        if fact:
            if line.strip().lower().startswith("[offset") and fact["value"].strip().lstrip("+-").isdecimal():
                shift = -int(fact["value"]) / 1000
            continue
        stamps = _STAMPS.match(line.strip())
        if stamps is None:
            pending.append(line.rstrip())  # belongs to what follows it
            continue
        words = _WORD_STAMP.sub("", line.strip()[stamps.end() :]).strip()
        for minutes, seconds in _STAMP.findall(stamps[0]):
            timed.append((60 * int(minutes) + float(seconds.replace(":", ".")), pending, words))
            pending = []
    lines, times = list[str](), list[float | None]()
    for start, before, words in sorted(timed, key=lambda entry: entry[0]):
        lines += [*before, words]
        times += [*[None] * len(before), max(0.0, start + shift)]
    return _trimmed([*lines, *pending], [*times, *[None] * len(pending)])


def _trimmed(lines: list[str], times: list[float | None]) -> tuple[str, Times]:
    while lines and not lines[-1]:
        lines.pop(), times.pop()
    while lines and not lines[0]:
        lines.pop(0), times.pop(0)
    return "\n".join(lines), tuple(times)


def cut(lyrics: str, times: Sequence[float | None], start: float, end: float) -> str:
    """The lines of ``lyrics`` of which at least half sounds from ``start`` to ``end``, under their sections' names."""
    lines = lyrics.split("\n")
    if len(lines) != len(times):
        raise ValueError(f"lyrics: {len(times)} times for {len(lines)} lines; need one for each, or none")
    starts = [time for time in times if time is not None]
    ends = {a: min(b, a + LONGEST_LINE_SECONDS) for a, b in pairwise(starts)}
    kept, heading = list[str](), list[str]()
    for line, time in zip(lines, times, strict=True):
        if time is None:
            # What has no time stands before what it belongs to; a later section's name replaces one left unsung.
            heading = [line] if _SECTION.fullmatch(line.strip()) else [*heading, line]
            continue
        stop = ends.get(time, time + LONGEST_LINE_SECONDS / 2)
        if max(0.0, min(stop, end) - max(time, start)) * 2 >= max(stop - time, 1e-6) and start <= stop and time < end:
            kept += [*heading, line]
            heading = []
    return "\n".join(kept).strip("\n")
