"""One HTML file to listen and look: players in a grid of prompts and cells, pictures, numbers, settings. No network."""

from __future__ import annotations

import base64
import json
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

from acestep.audio import Audio, read_audio
from acestep.evaluation import plots
from acestep.evaluation.cells import CEILING
from acestep.evaluation.embedders import mono
from acestep.evaluation.results import Results, Row
from acestep.evaluation.statistics import Interval
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
    """

    results: Results
    title: str = ""
    compare: Mapping[str, Results] = field(default_factory=dict)
    songs: int = 8


def write_report(parts: Sequence[Part], folder: str | Path, title: str) -> Path:
    """``report.html``, ``plots/*.png`` and ``plots/*.svg`` in ``folder``."""
    body = f"<header><h1>{escape(title)}</h1></header>" + "".join(_part(part, Path(folder)) for part in parts)
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text('utf-8')}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT.read_text('utf-8')}</script></body></html>"
    )
    path = Path(folder) / "report.html"
    with atomic(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


def _part(part: Part, folder: Path) -> str:
    results = part.results
    drawn = plots.figures(results, part.compare)
    prefix = f"{_slug(part.title)}_" if part.title else ""
    for name, figure in drawn.items():
        plots.save(figure, folder / "plots" / f"{prefix}{name}.png")
    pictures = "".join(f"<figure>{plots.svg(figure)}</figure>" for figure in drawn.values())
    return "".join([
        f"<h2>{escape(part.title)}</h2>" if part.title else "",
        f"<p class=facts>{escape(_subtitle(results))}</p>",
        _cards(results),
        f"<section class=figures>{pictures}</section>",
        "<h2>Listen</h2><p>Each box is one prompt and one seed: the same noise under every setting.</p>",
        *[_song(part, prompt) for prompt in chosen(results, part.songs)],
        "<h2>All numbers</h2>",
        _table(results),
        _settings(results),
    ])  # fmt: skip


def chosen(results: Results, count: int) -> list[str]:
    """Prompts to show: evenly spread over the ranking by the first score in its best cell, worst and best included."""
    ids = list(dict.fromkeys(row.prompt.id for row in results.rows if row.cell != CEILING and row.path))
    if results.headlines:
        scores = results.values(results.headlines[0], results.best(results.headlines[0]))
        ids.sort(key=lambda name: scores.get(name, -1.0), reverse=True)
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


def _song(part: Part, prompt_id: str) -> str:
    results = part.results
    rows = _rows(results, prompt_id)
    song = next(iter(rows.values())).prompt.song
    facts = [f"{song.bpm} bpm" if song.bpm else "", song.key or "", f"{song.seconds:.1f} s" if song.seconds else "",
             f"language {song.language}", f"seed {song.seed}"]  # fmt: skip
    players = [_player(results, rows[label], _name(results, label)) for label in results.cells if label in rows]
    for name, other in part.compare.items():
        label = other.best(other.headlines[0])
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
    settings = results.setting.cells[label]
    return (
        ", ".join(
            f"{path.rpartition('.')[2]} {value:g}" if isinstance(value, float) else f"{path.rpartition('.')[2]} {value}"
            for path, value in settings.items()
        )
        or "generated"
    )


def _player(results: Results, row: Row, name: str) -> str:
    if row.path is None:
        return f"<div class=cell><b>{escape(name)}</b><p class=facts>{escape(row.excluded)}</p></div>"
    audio = read_audio(row.path)
    scores = " · ".join(
        f"{column.partition('.')[0]} {row.scores[column]:.2f}" for column in results.headlines if column in row.scores
    )
    return (
        f"<div class=cell><b>{escape(name)}</b><span class=facts>{escape(scores)}</span>"
        f"<img alt='' src='{_data(spectrogram_png(audio), 'image/png')}'>"
        f"<audio controls preload=none src='{_data(mp3(audio), 'audio/mpeg')}'></audio></div>"
    )


def _cards(results: Results) -> str:
    cards = []
    for column in results.headlines:
        best = results.best(column)
        found, ceiling = results.interval(column, best), results.interval(column, CEILING)
        shuffled = results.interval(column, best, shuffled=True)
        notes = [f"at {best}", f"95 % {found.low:.3f} to {found.high:.3f}" if found else ""]
        notes += [f"shuffled {shuffled.mean:.3f}" if shuffled else "", f"ceiling {ceiling.mean:.3f}" if ceiling else ""]
        cards.append(_card(column.replace(".", " · "), f"{found.mean:.3f}" if found else "–", notes))
    for metric in dict.fromkeys(metric for cell in results.cells for metric in results.sets.get(cell, {})):
        values = {cell: found for cell in results.cells if (found := results.sets.get(cell, {}).get(metric))}
        headline = next(iter(next(iter(values.values()))))
        best = min(values, key=lambda cell: values[cell][headline])
        ceiling = results.sets.get(CEILING, {}).get(metric, {})
        notes = [f"at {best}", f"ceiling {ceiling[headline]:.3f}" if headline in ceiling else ""]
        cards.append(_card(f"{metric}, lowest", f"{values[best][headline]:.3f}", notes))
    return f"<section class=cards>{''.join(cards)}</section>"


def _card(name: str, value: str, notes: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes if note)
    return f"<div class=card><h4>{escape(name)}</h4><strong>{escape(value)}</strong><ul>{lines}</ul></div>"


def _table(results: Results) -> str:
    labels = [*results.cells, *([CEILING] if CEILING in results.sets else [])]
    rows = [(column, [_cell(results.interval(column, label)) for label in labels]) for column in results.columns]
    names = dict.fromkeys((m, name) for label in labels for m, v in results.sets.get(label, {}).items() for name in v)
    for metric, name in names:
        found = [results.sets.get(label, {}).get(metric, {}).get(name) for label in labels]
        rows.append((f"{metric}.{name}", ["–" if value is None else f"{value:.4g}" for value in found]))
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{v}</td>' for v in values)}</tr>" for name, values in rows
    )
    return f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(found: Interval | None) -> str:
    return "–" if found is None else f"{found.mean:.3f} <small>{found.low:.3f} to {found.high:.3f}</small>"


def _settings(results: Results) -> str:
    summary = results.summary()
    shown = {**summary["setting"], "songs": summary["songs"]}
    text = escape(json.dumps(shown, indent=2))
    return f"<details><summary>everything the numbers depend on</summary><pre>{text}</pre></details>"


def _subtitle(results: Results) -> str:
    songs = [row for row in results.rows if row.cell != CEILING]
    prompts = len({row.prompt.id for row in songs})
    scored = sum(1 for row in songs if row.path)
    counts = f"{prompts} prompts, {len(results.cells)} settings, {scored} of {len(songs)} songs scored"
    return f"{counts} · {results.setting.weights}"


def _slug(title: str) -> str:
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
