"""The report of evaluations as one HTML file: overview, plots, audio players, tables, settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import torch
from matplotlib.image import imsave

from acestep.audio.audio import Audio, read_audio
from acestep.evaluation.embedders.base import mono
from acestep.evaluation.embedders.cache import map_songs
from acestep.evaluation.report import comparison, tables
from acestep.evaluation.report.plots import CEILING_LABEL, evaluation_figures, figure_gallery, short_settings
from acestep.evaluation.report.terms import TERMS
from acestep.evaluation.results import ResultRow, Results, named_results
from acestep.evaluation.sweep import CEILING
from acestep.page import TERMS_LINK, audio_player, details, image, terms_section, write_page

MP3_RATE = 32_000
MP3_COMPRESSION = 0.75
MAX_SECONDS = 30.0


@dataclass(frozen=True)
class ReportSection:
    """One evaluation in a report.

    Attributes:
        results: the evaluation.
        title: heading of the section, and prefix of its plots' file names.
        compare: other models on the same prompts, by name: in the plots, and as players at their own best sweep point.
        songs: prompts with players, evenly spaced from the best to the worst score.
        name: of the results beside others.
    """

    results: Results
    title: str = ""
    compare: Mapping[str, Results] = field(default_factory=dict)
    songs: int = 8
    name: str = "this"


def write_evaluation_report(sections: Sequence[ReportSection], folder: str | Path, title: str) -> Path:
    """Write ``report.html``, ``plots/*.png`` and ``plots/*.svg`` into ``folder``."""
    folder = Path(folder)
    body = "".join(_section_html(section, folder) for section in sections)
    return write_page(folder / "report.html", title, body + terms_section(TERMS))


def report_title(results: Results) -> str:
    """Title of the report of one evaluation."""
    return f"Evaluation of {results.info.display_name(results.info.weights)}"


def write_comparison_report(folders: Sequence[str | Path], out: str | Path, songs: int) -> Path:
    """Write the report of finished evaluations; the others are compared with the first."""
    named = named_results(folders)
    (name, results), *others = named.items()
    title = f"{len(named)} evaluations" if others else report_title(results)
    section = ReportSection(results, name=name, compare=dict(others), songs=songs)
    return write_evaluation_report([section], out, title)


def _section_html(section: ReportSection, folder: Path) -> str:
    results = section.results
    named = {section.name: results, **section.compare}
    prefix = f"{_slug(section.title)}_" if section.title else ""
    figures = {f"{prefix}{name}": figure for name, figure in evaluation_figures(named).items()}
    return "".join([
        f"<h2>{escape(section.title)}</h2>" if section.title else "",
        f"<p class=facts>{escape(_song_counts(results))} · {TERMS_LINK}</p>",
        tables.overview(results),
        tables.notes(results),
        figure_gallery(figures, folder / "plots"),
        comparison.side_by_side(named),
        _players(section),
        tables.sweep_differences(results),
        "<h2>All scores</h2>",
        tables.score_table(results),
        tables.prompt_table(results),
        *[tables.info_block(one) for one in named.values()],
    ])  # fmt: skip


def select_prompts(results: Results, count: int) -> list[str]:
    """At most ``count`` prompts, evenly spaced over the ranking, the best and the worst among them."""
    ids = tables.ranked_prompts(results)
    if len(ids) <= count:
        return ids
    return [ids[round(i * (len(ids) - 1) / max(count - 1, 1))] for i in range(count)]


def encode_mp3(audio: Audio) -> bytes:
    """The first :data:`MAX_SECONDS` of a song as MP3, which every browser plays."""
    samples = audio.samples[:, : round(MAX_SECONDS * audio.sample_rate)]
    stereo = torch.stack([mono(Audio(side[None], audio.sample_rate), MP3_RATE) for side in samples[:2]], 1)
    buffer = BytesIO()
    soundfile.write(
        buffer, stereo.clamp(-1, 1).numpy(), MP3_RATE, format="MP3", subtype="MPEG_LAYER_III",
        compression_level=MP3_COMPRESSION, bitrate_mode="VARIABLE",
    )  # fmt: skip
    return buffer.getvalue()


def spectrogram_png(audio: Audio) -> bytes:
    """Spectrogram of the first :data:`MAX_SECONDS`: logarithmic frequency, 80 dB dynamic range."""
    samples = mono(audio, 24_000)[: round(MAX_SECONDS * 24_000)]
    power = torch.stft(samples, 2048, max(len(samples) // 240, 1), window=torch.hann_window(2048), return_complex=True)
    level = 20 * torch.log10(power.abs() + 1e-6)
    rows = torch.logspace(np.log10(4), np.log10(1000), 72).round().long()
    pixels = ((level[rows] - level.max()) / 80 + 1).clamp(0, 1).flip(0)
    buffer = BytesIO()
    imsave(buffer, pixels.numpy(), cmap="magma", format="png", vmin=0, vmax=1)
    return buffer.getvalue()


def _players(section: ReportSection) -> str:
    """Players for prompts from the best to the worst."""
    results = section.results
    ranks = {name: rank for rank, name in enumerate(tables.ranked_prompts(results), 1)}
    head = "<h2>Songs</h2><p>Each box is one prompt and one seed: the same initial noise at every sweep point.</p>"
    if results.headlines and len(ranks) > 1:
        column = results.headlines[0]
        head += f"<p class=facts>Ranks are by {escape(column)} at {escape(results.best(column))}, 1 is the best.</p>"
    names = select_prompts(results, section.songs)
    articles = map_songs(lambda name: _article(section, name, f"rank {ranks[name]} of {len(ranks)}"), names)
    return head + "".join(articles)


def _article(section: ReportSection, prompt_id: str, rank: str) -> str:
    results = section.results
    rows = _rows_by_point(results, prompt_id)
    song = next(iter(rows.values())).prompt.song
    facts = [rank, f"{song.bpm} bpm" if song.bpm else "", song.key or ""]
    facts += [f"{song.seconds:.1f} s" if song.seconds else "", f"language {song.language}", f"seed {song.seed}"]
    players = [_player(results, rows[point], _point_name(results, point)) for point in results.points if point in rows]
    for name, other in section.compare.items():
        point = other.best(other.headlines[0]) if other.headlines else other.points[0]
        if row := _rows_by_point(other, prompt_id).get(point):
            players.append(_player(other, row, f"{name}, {_point_name(other, point)}"))
    if CEILING in rows:
        players.append(_player(results, rows[CEILING], CEILING_LABEL))
    lyrics = details("lyrics", f"<pre>{escape(song.lyrics)}</pre>") if song.lyrics else ""
    return (
        f"<article><h3>{escape(song.caption or prompt_id)}</h3>"
        f"<p class=facts>{escape(' · '.join(filter(None, facts)))}</p>{lyrics}"
        f"<div class=row>{''.join(players)}</div></article>"
    )


def _rows_by_point(results: Results, prompt_id: str) -> dict[str, ResultRow]:
    return {row.point: row for row in results.rows if row.prompt.id == prompt_id and row.take == 0}


def _point_name(results: Results, point: str) -> str:
    return short_settings(results.info.points[point]) or "generated"


def _player(results: Results, row: ResultRow, name: str) -> str:
    if row.path is None or not row.path.is_file():
        reason = row.excluded or "the file is missing"
        return f"<div class=cell><b>{escape(name)}</b><p class=facts>{escape(reason)}</p></div>"
    audio = read_audio(row.path)
    scores = " · ".join(
        f"{column.partition('.')[0]} {row.scores[column]:.2f}" for column in results.headlines if column in row.scores
    )
    return (
        f"<div class=cell><b>{escape(name)}</b><span class=facts>{escape(scores)}</span>"
        f"{image(spectrogram_png(audio), 'image/png')}{audio_player(encode_mp3(audio), 'audio/mpeg')}</div>"
    )


def _song_counts(results: Results) -> str:
    songs = [row for row in results.rows if row.point != CEILING]
    prompts, scored = len({row.prompt.id for row in songs}), sum(1 for row in songs if row.path)
    points = "1 sweep point" if len(results.points) == 1 else f"{len(results.points)} sweep points"
    counts = f"{prompts} prompts, {points}, {scored} of {len(songs)} songs scored"
    return f"{counts} · {results.info.display_name(results.info.weights)}"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "_", title.lower()).strip("_")
