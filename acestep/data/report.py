"""What stands out in a set of songs before anyone trains on it: findings of a store or of a dry run, and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np

from acestep.data.files import file_hash, measured
from acestep.data.manifests import Item, open_source
from acestep.data.measure import copies
from acestep.data.store import Row
from acestep.data.work import Skipped, Work, reason
from acestep.files import atomic

LONGEST_SECONDS = 600.0
"""What the published model was trained on (upstream ``constants.py``)."""
MOST_CLIPPED = 1e-3
MOST_SILENCE = 0.3
LETTERS_A_SECOND = 25.0
ALIKE = 0.2
APART_SECONDS = 1.0
"""Copies differ in at most this share of their outlines' bits, and in their durations by this."""
MOST_LINES = 1000


@dataclass(frozen=True)
class Finding:
    """Something about one song that a person should look at; it can be used all the same."""

    file: str
    what: str


def dry_run(
    source: str | Path, work: Work, on_song: Callable[[int, int | None], None]
) -> tuple[list[Row], list[Skipped]]:
    """Go through a source as preprocessing does, to the last sample of every song, and encode nothing.

    Returns:
        A row for each song that can be used, without latents, and what would be skipped.
    """
    found = open_source(source)
    rows, skipped = list[Row](), list[Skipped]()
    for done, item in enumerate(found.items, start=1):
        try:
            rows.append(_looked_at(item, work))
        except (ValueError, OSError) as error:
            skipped.append(Skipped(item.name, reason(error, item)))
        on_song(done, found.total)
    return rows, skipped


def _looked_at(item: Item, work: Work) -> Row:
    identity = {"source": item.name, "sha256": file_hash(item.audio)}
    measures = asdict(measured(item.audio))
    if not measures["seconds"]:
        raise ValueError("too short: holds no sample")
    return identity | work.words(item) | measures


def findings(rows: Sequence[Row]) -> list[Finding]:
    """What stands out, by file."""
    found = [Finding(row["source"], what) for row in rows for what in _oddities(row)]
    return sorted([*found, *_doubles(rows)], key=lambda finding: finding.file)


def _oddities(row: Row) -> Iterable[str]:
    seconds, letters = row["seconds"], _letters(row)
    if seconds > LONGEST_SECONDS:
        yield f"lasts {seconds:.0f} s: more than the {LONGEST_SECONDS:.0f} s that the model was made for"
    if letters > LETTERS_A_SECOND * seconds:
        yield f"{letters} letters of lyrics in {seconds:.0f} s: more than can be sung"
    if not letters and not row.get("instrumental"):
        yield "no lyrics: trains as an instrumental; say instrumental=true if it is one"
    if row.get("peak") is None:
        return
    if row["clipped"] > MOST_CLIPPED:
        yield f"{row['clipped']:.1%} of the samples are clipped"
    if row["loudness"] is None:
        yield "silent"
    elif row["silence"] > MOST_SILENCE:
        yield f"{row['silence']:.0%} of it is silence"


def _letters(row: Row) -> int:
    return len("".join((row["lyrics"] or "").split()))


def _doubles(rows: Sequence[Row]) -> Iterable[Finding]:
    """Songs that are there twice: the same bytes, or the same outline at the same length."""
    first: dict[str, str] = {}
    known = []
    for row in sorted(rows, key=lambda row: row["seconds"]):
        before = first.setdefault(row["sha256"], row["source"])
        if before != row["source"]:
            yield Finding(row["source"], f"the same file as {before}")
        elif row.get("outline"):
            known.append(row)
    told = set[int]()
    for one, other in copies(
        [row["outline"] for row in known], [row["seconds"] for row in known], ALIKE, APART_SECONDS
    ):
        if other not in told:
            told.add(other)
            yield Finding(known[other]["source"], f"sounds like {known[one]['source']}: another copy of it?")


def write_report(path: Path, rows: Sequence[Row], skipped: Sequence[Skipped]) -> Path:
    """One page that needs nothing beside it: distributions, findings, and what was skipped and why."""
    hours = sum(row["seconds"] for row in rows) / 3600
    heard = [row for row in rows if row.get("peak") is not None]
    sections = [
        _histogram("Duration, seconds", [row["seconds"] for row in rows]),
        _counts("Language", [row["language"] or "unknown" for row in rows]),
        _histogram("Tempo, beats per minute", [row["bpm"] for row in rows if row["bpm"]]),
        _counts("Key", [row["key"] or "unknown" for row in rows]),
        _counts("Split", [row.get("split") or "train" for row in rows]),
        _counts("Licence", [row.get("licence") or "unknown" for row in rows]),
        _histogram("Loudness, LUFS", [row["loudness"] for row in heard if row["loudness"] is not None]),
        _histogram("Silence, % of the song", [100 * row["silence"] for row in heard]),
        _histogram("Clipped samples, %", [100 * row["clipped"] for row in heard]),
        _histogram("Letters of lyrics a second", [_letters(row) / row["seconds"] for row in rows if _letters(row)]),
        _table("What stands out", [(finding.file, finding.what) for finding in findings(rows)]),
        _table("Skipped", [(skip.file, skip.reason) for skip in skipped]),
    ]
    head = f"<h1>{len(rows)} songs, {hours:.2f} hours, {len(skipped)} skipped</h1>"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Songs</title><style>{_STYLE}</style>{head}'
    with atomic(path) as aside:
        aside.write_text(page + "".join(sections) + "</html>\n", encoding="utf-8")
    return path


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "section{display:inline-block;vertical-align:top;margin:0 2em 1em 0}section.wide{display:block}"
    "h2{font-size:1.05em;margin:.8em 0 .3em}td{padding:.1em 1em .1em 0;vertical-align:top;overflow-wrap:anywhere}"
    "rect{fill:#4a7fb5}text{font:11px system-ui;fill:#555}"
)


def _histogram(title: str, values: Sequence[float], bins: int = 24) -> str:
    if not values:
        return ""
    counts, edges = np.histogram(values, bins=bins)
    heights = 78 * counts / counts.max()
    bars = "".join(
        f'<rect x="{12 * at}" y="{80 - heights[at]:.1f}" width="11" height="{heights[at]:.1f}">'
        f"<title>{edges[at]:.4g} to {edges[at + 1]:.4g}: {count}</title></rect>"
        for at, count in enumerate(counts)
    )
    ends = (
        f'<text x="0" y="95">{edges[0]:.4g}</text><text x="{12 * bins}" y="95" text-anchor="end">{edges[-1]:.4g}</text>'
    )
    middle = f"median {np.median(values):.4g}"
    return (
        f"<section><h2>{escape(title)}</h2><svg width='{12 * bins}' height='100'>{bars}{ends}"
        f'<text x="{6 * bins}" y="95" text-anchor="middle">{middle}</text></svg></section>'
    )


def _counts(title: str, values: Sequence[str], most: int = 12) -> str:
    counted = Counter(values).most_common()
    rest = sum(count for _, count in counted[most:])
    lines = [*counted[:most], *([("others", rest)] if rest else [])]
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in lines)
    return f"<section><h2>{escape(title)}</h2><table>{cells}</table></section>"


def _table(title: str, lines: Sequence[tuple[str, str]]) -> str:
    shown = [*lines[:MOST_LINES], *([("...", "--check lists all")] if len(lines) > MOST_LINES else [])]
    cells = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in shown)
    cells = cells or "<tr><td>nothing</td></tr>"
    return f'<section class="wide"><h2>{escape(title)} ({len(lines)})</h2><table>{cells}</table></section>'
