"""Checks of a data set before training: findings of a latent store or of a dry run, and an HTML page of statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from acestep.data.audio_checks import find_duplicates, measure_audio
from acestep.data.preprocess import Preprocess, SkippedFile, skip_reason
from acestep.data.sources import SourceSong, open_source
from acestep.data.store import Row
from acestep.files import file_hash
from acestep.page import TERMS_LINK, html_table, terms_section, write_page

MAX_SECONDS = 600.0
"""Longest songs that the published model was trained on (upstream ``constants.py``)."""
MAX_CLIPPED, MAX_SILENCE = 1e-3, 0.3
MAX_LETTERS_PER_SECOND = 25.0
MAX_OUTLINE_DISTANCE, MAX_DURATION_DIFFERENCE = 0.2, 1.0
"""Limits for duplicates: share of differing bits of their outlines, and difference of their durations in seconds."""
MAX_LINES = 1000


@dataclass(frozen=True)
class Finding:
    """A property of a song that should be checked; the song can be used."""

    file: str
    what: str


def dry_run(
    source: str | Path, options: Preprocess, on_song: Callable[[int, int | None], None]
) -> tuple[list[Row], list[SkippedFile]]:
    """Read every song of a source completely, as preprocessing does, without encoding.

    Args:
        source: folder or manifest.
        options: of the preprocessing.
        on_song: called after each song with the number of songs so far and the total, if known.

    Returns:
        A row without latents for each usable song, and the songs that preprocessing would skip.
    """
    opened = open_source(source)
    rows, skipped = list[Row](), list[SkippedFile]()
    for done, song in enumerate(opened.songs, start=1):
        try:
            rows.append(_measured_row(song, options))
        except (ValueError, OSError) as error:
            skipped.append(SkippedFile(song.name, skip_reason(error, song)))
        on_song(done, opened.total)
    return rows, skipped


def _measured_row(song: SourceSong, options: Preprocess) -> Row:
    columns = {"source": song.name, "sha256": file_hash(song.audio)}
    measures = measure_audio(song.audio).columns()
    if not measures["seconds"]:
        raise ValueError("too short: holds no sample")
    return columns | options.text_columns(song) | measures


def findings(rows: Sequence[Row]) -> list[Finding]:
    """All findings, sorted by file."""
    unusual = [Finding(row["source"], what) for row in rows for what in _unusual_properties(row)]
    return sorted([*unusual, *_duplicates(rows)], key=lambda finding: finding.file)


def _unusual_properties(row: Row) -> Iterable[str]:
    seconds, letters = row["seconds"], _letters(row)
    if seconds > MAX_SECONDS:
        yield f"lasts {seconds:.0f} s: more than the {MAX_SECONDS:.0f} s that the model was trained on"
    if letters > MAX_LETTERS_PER_SECOND * seconds:
        yield f"{letters} letters of lyrics in {seconds:.0f} s: more than can be sung"
    if not letters and not row.get("instrumental"):
        yield "no lyrics: trains as an instrumental; say instrumental=true if it is one"
    if row.get("peak") is None:
        return
    if row["clipped"] > MAX_CLIPPED:
        yield f"{row['clipped']:.1%} of the samples are clipped"
    if row["loudness"] is None:
        yield "silent"
    elif row["silence"] > MAX_SILENCE:
        yield f"{row['silence']:.0%} of it is silence"


def _letters(row: Row) -> int:
    return len("".join((row["lyrics"] or "").split()))


def _duplicates(rows: Sequence[Row]) -> Iterable[Finding]:
    """Songs with the same bytes as another, or with nearly the same outline and duration."""
    first: dict[str, str] = {}
    others = []
    for row in sorted(rows, key=lambda row: row["seconds"]):
        original = first.setdefault(row["sha256"], row["source"])
        if original != row["source"]:
            yield Finding(row["source"], f"the same file as {original}")
        elif row.get("outline"):
            others.append(row)
    outlines, seconds = [row["outline"] for row in others], [row["seconds"] for row in others]
    originals: dict[int, int] = {}
    for one, other in find_duplicates(outlines, seconds, MAX_OUTLINE_DISTANCE, MAX_DURATION_DIFFERENCE):
        originals.setdefault(other, one)
    for other, one in originals.items():
        yield Finding(others[other]["source"], f"sounds like {others[one]['source']}: another copy of it?")


def write_data_report(path: Path, rows: Sequence[Row], skipped: Sequence[SkippedFile]) -> Path:
    """Write one HTML file: distributions, findings, and the skipped songs with reasons."""
    hours = sum(row["seconds"] for row in rows) / 3600
    measured = [row for row in rows if row.get("peak") is not None]
    sections = [
        _histogram("Duration, seconds", [row["seconds"] for row in rows]),
        _count_table("Language", [row["language"] or "unknown" for row in rows]),
        _histogram("Tempo, beats per minute", [row["bpm"] for row in rows if row["bpm"]]),
        _count_table("Key", [row["key"] or "unknown" for row in rows]),
        _count_table("Split", [row.get("split") or "train" for row in rows]),
        _count_table("Licence", [row.get("licence") or "unknown" for row in rows]),
        _histogram("Loudness, LUFS", [row["loudness"] for row in measured if row["loudness"] is not None]),
        _histogram("Silence, % of the song", [100 * row["silence"] for row in measured]),
        _histogram("Clipped samples, %", [100 * row["clipped"] for row in measured]),
        _histogram("Letters of lyrics a second", [_letters(row) / row["seconds"] for row in rows if _letters(row)]),
        _file_list("Findings", [(finding.file, finding.what) for finding in findings(rows)]),
        _file_list("Skipped", [(skip.file, skip.reason) for skip in skipped]),
        f"<p>{TERMS_LINK}</p>{terms_section(DATA_TERMS)}",
    ]
    title = f"{len(rows)} songs, {hours:.2f} hours, {len(skipped)} skipped"
    return write_page(path, title, "".join(sections), _STYLE)


DATA_TERMS = {
    "split": "set that the song belongs to: train, or held out for validation",
    "LUFS": "integrated loudness of ITU-R BS.1770",
    "silence": "share of the song that is quieter than -60 LUFS",
    "clipped": "share of the samples at full scale",
    "skipped": "songs that preprocessing does not store",
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "section{display:inline-block;vertical-align:top;margin:0 2em 1em 0}section.wide{display:block}"
    "h2{font-size:1.05em;margin:.8em 0 .3em}"
    "td,th{padding:.1em 1em .1em 0;vertical-align:top;overflow-wrap:anywhere;text-align:left;font-weight:400}"
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
    labels = "".join(
        f'<text x="{x}" y="95" text-anchor="{anchor}">{text}</text>'
        for x, anchor, text in (
            (0, "start", f"{edges[0]:.4g}"),
            (6 * bins, "middle", f"median {np.median(values):.4g}"),
            (12 * bins, "end", f"{edges[-1]:.4g}"),
        )
    )
    return _titled_section(title, f"<svg width='{12 * bins}' height='100'>{bars}{labels}</svg>")


def _count_table(title: str, values: Sequence[str], most: int = 12) -> str:
    counted = Counter(values).most_common()
    rest = sum(count for _, count in counted[most:])
    lines = [*counted[:most], *([("others", rest)] if rest else [])]
    return _titled_section(title, html_table((), [(name, [str(count)]) for name, count in lines]))


def _file_list(title: str, lines: Sequence[tuple[str, str]]) -> str:
    shown = [*lines[:MAX_LINES], *([("...", "--check lists all")] if len(lines) > MAX_LINES else [])]
    rows = [(file, [escape(text)]) for file, text in shown] or [("nothing", [])]
    return _titled_section(f"{title} ({len(lines)})", html_table((), rows), " class=wide")


def _titled_section(title: str, content: str, attributes: str = "") -> str:
    return f"<section{attributes}><h2>{escape(title)}</h2>{content}</section>"
