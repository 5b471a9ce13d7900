"""One HTML file to listen and look: players in a grid of prompts and cells, pictures, numbers, settings. No network."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave

from acestep.audio.audio import Audio, read_audio
from acestep.evaluation.embedders.base import mono
from acestep.evaluation.embedders.cache import each_song
from acestep.evaluation.joined import named_results
from acestep.evaluation.report import comparison, plots, tables
from acestep.evaluation.results import Results
from acestep.evaluation.rows import Row
from acestep.evaluation.series import described
from acestep.evaluation.sweep import CEILING
from acestep.files import atomic

ASSETS = Path(__file__).parent
STYLE, SCRIPT = ASSETS / "report.css", ASSETS / "report.js"
MP3_RATE = 32_000
MP3_COMPRESSION = 0.75
LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Part:
    """One evaluation in a report.

    Attributes:
        results: what was found.
        title: heading of the part, and the name of its plots.
        compare: other models on the same prompts, by name: drawn into the plots, and each heard at its own best cell.
        songs: prompts with players, evenly spread from the best to the worst score.
        name: what the results are called beside others.
    """

    results: Results
    title: str = ""
    compare: Mapping[str, Results] = field(default_factory=dict)
    songs: int = 8
    name: str = "this"


def write_report(parts: Sequence[Part], folder: str | Path, title: str) -> Path:
    """``report.html``, ``plots/*.png`` and ``plots/*.svg`` in ``folder``."""
    return write_page(Path(folder) / "report.html", title, "".join(_part(part, Path(folder)) for part in parts))


def write_page(path: Path, title: str, body: str) -> Path:
    """One HTML file with style and script in it, under a heading."""
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text('utf-8')}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1></header>{body}</main>"
        f"<script>{SCRIPT.read_text('utf-8')}</script></body></html>"
    )
    with atomic(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def gallery(drawn: Mapping[str, Figure], folder: Path) -> str:
    """Write the pictures to ``folder`` by their names; returns what shows them on a page."""
    shown = [f"<figure>{plots.save(figure, folder / f'{name}.png')}</figure>" for name, figure in drawn.items()]
    return f"<section class=figures>{''.join(shown)}</section>"


def title_of(results: Results) -> str:
    """Of the report of one evaluation."""
    return f"Evaluation of {results.setting.called(results.setting.weights)}"


def write_comparison(folders: Sequence[str | Path], out: str | Path, songs: int) -> Path:
    """The report of finished evaluations; the first is the one that the others are compared with."""
    found = named_results(folders)
    (name, results), *others = found.items()
    title = title_of(results) if not others else f"{len(found)} evaluations"
    return write_report([Part(results, name=name, compare=dict(others), songs=songs)], out, title)


def _part(part: Part, folder: Path) -> str:
    results = part.results
    prefix = f"{_slug(part.title)}_" if part.title else ""
    drawn = plots.figures({part.name: results, **part.compare})
    return "".join([
        f"<h2>{escape(part.title)}</h2>" if part.title else "",
        f"<p class=facts>{escape(_subtitle(results))}</p>",
        tables.cards(results),
        tables.notes(results),
        gallery({f"{prefix}{name}": figure for name, figure in drawn.items()}, folder / "plots"),
        comparison.side_by_side({part.name: results, **part.compare}),
        _listen(part),
        tables.differences(results),
        "<h2>All numbers</h2>",
        tables.numbers(results),
        tables.prompt_table(results),
        *[tables.settings(one) for one in (results, *part.compare.values())],
    ])  # fmt: skip


def chosen(results: Results, count: int) -> list[str]:
    """Prompts to show: evenly spread over the ranking, worst and best included."""
    ids = tables.ranked(results)
    if len(ids) <= count:
        return ids
    return [ids[round(i * (len(ids) - 1) / max(count - 1, 1))] for i in range(count)]


def mp3(audio: Audio, longest_seconds: float = LONGEST_SECONDS) -> bytes:
    """The beginning of a song as an MP3 that every browser plays."""
    samples = audio.samples[:, : round(longest_seconds * audio.sample_rate)]
    stereo = torch.stack([mono(Audio(side[None], audio.sample_rate), MP3_RATE) for side in samples[:2]], 1)
    buffer = BytesIO()
    soundfile.write(
        buffer, stereo.clamp(-1, 1).numpy(), MP3_RATE, format="MP3", subtype="MPEG_LAYER_III",
        compression_level=MP3_COMPRESSION, bitrate_mode="VARIABLE",
    )  # fmt: skip
    return buffer.getvalue()


def spectrogram_png(audio: Audio, longest_seconds: float = LONGEST_SECONDS) -> bytes:
    """A thumbnail of the song, low notes at the bottom, 80 dB deep."""
    samples = mono(audio, 24_000)[: round(longest_seconds * 24_000)]
    power = torch.stft(samples, 2048, max(len(samples) // 240, 1), window=torch.hann_window(2048), return_complex=True)
    level = 20 * torch.log10(power.abs() + 1e-6)
    rows = torch.logspace(np.log10(4), np.log10(1000), 72).round().long()
    image = ((level[rows] - level.max()) / 80 + 1).clamp(0, 1).flip(0)
    buffer = BytesIO()
    imsave(buffer, image.numpy(), cmap="magma", format="png", vmin=0, vmax=1)
    return buffer.getvalue()


def _listen(part: Part) -> str:
    """Players for prompts from the best to the worst."""
    results = part.results
    ranks = {name: place for place, name in enumerate(tables.ranked(results), 1)}
    head = "<h2>Listen</h2><p>Each box is one prompt and one seed: the same noise under every setting.</p>"
    if results.headlines and len(ranks) > 1:
        column = results.headlines[0]
        head += f"<p class=facts>Ranks are by {escape(column)} at {escape(results.best(column))}, 1 is the best.</p>"
    names = chosen(results, part.songs)
    return head + "".join(each_song(lambda name: _song(part, name, f"rank {ranks[name]} of {len(ranks)}"), names))


def _song(part: Part, prompt_id: str, rank: str) -> str:
    results = part.results
    rows = _rows(results, prompt_id)
    song = next(iter(rows.values())).prompt.song
    facts = [rank, f"{song.bpm} bpm" if song.bpm else "", song.key or ""]
    facts += [f"{song.seconds:.1f} s" if song.seconds else "", f"language {song.language}", f"seed {song.seed}"]
    players = [_player(results, rows[label], _name(results, label)) for label in results.cells if label in rows]
    for name, other in part.compare.items():
        label = other.best(other.headlines[0]) if other.headlines else other.cells[0]
        if row := _rows(other, prompt_id).get(label):
            players.append(_player(other, row, f"{name}, {_name(other, label)}"))
    if CEILING in rows:
        players.append(_player(results, rows[CEILING], "recording, coded"))
    lyrics = f"<details><summary>lyrics</summary><pre>{escape(song.lyrics)}</pre></details>" if song.lyrics else ""
    return (
        f"<article><h3>{escape(song.caption or prompt_id)}</h3>"
        f"<p class=facts>{escape(' · '.join(fact for fact in facts if fact))}</p>{lyrics}"
        f"<div class=row>{''.join(players)}</div></article>"
    )


def _rows(results: Results, prompt_id: str) -> dict[str, Row]:
    return {row.cell: row for row in results.rows if row.prompt.id == prompt_id and row.take == 0}


def _name(results: Results, label: str) -> str:
    return described(results.setting.cells[label]) or "generated"


def _player(results: Results, row: Row, name: str) -> str:
    if row.path is None or not row.path.is_file():
        reason = row.excluded or "the file is no longer there"
        return f"<div class=cell><b>{escape(name)}</b><p class=facts>{escape(reason)}</p></div>"
    audio = read_audio(row.path)
    scores = " · ".join(
        f"{column.partition('.')[0]} {row.scores[column]:.2f}" for column in results.headlines if column in row.scores
    )
    return (
        f"<div class=cell><b>{escape(name)}</b><span class=facts>{escape(scores)}</span>"
        f"<img alt='' src='{_data(spectrogram_png(audio), 'image/png')}'>"
        f"<audio controls preload=none src='{_data(mp3(audio), 'audio/mpeg')}'></audio></div>"
    )


def _subtitle(results: Results) -> str:
    songs = [row for row in results.rows if row.cell != CEILING]
    prompts = len({row.prompt.id for row in songs})
    scored = sum(1 for row in songs if row.path)
    counts = f"{prompts} prompts, {len(results.cells)} settings, {scored} of {len(songs)} songs scored"
    return f"{counts} · {results.setting.called(results.setting.weights)}"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
