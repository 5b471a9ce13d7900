"""What covers and repaints keep and change in the micro world, by its oracles, over their strengths.

``python -m benchmarks.tasks OUT --weights micro --songs 16``; writes OUT/tasks.json and OUT/tasks.png. A cover asks for
the source's song on another instrument; a repaint asks for another song in the source's second half.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from acestep.audio import Audio
from acestep.files import atomic
from acestep.pipeline import Pipeline
from acestep.synth import CHANCE, INSTRUMENTS, Oracles, Truth, describe, draw_song, oracles, render
from acestep.synth.world import BEATS_PER_SYLLABLE
from acestep.types import Request

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
JUDGE = Path(oracles.__file__).parents[1] / "assets" / "micro" / "oracles.safetensors"
COVERED = ("tempo", "key", "instrument")
REPAINTED = ("key", "mode", "instrument", "drums")
SEED = 9_001


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", default="micro")
    parser.add_argument("--songs", type=int, default=16)
    options = parser.parse_args(arguments)
    pipeline, judge = Pipeline.from_pretrained(options.weights), Oracles.load(JUDGE)
    options.out.mkdir(parents=True, exist_ok=True)
    tables = {
        "cover": _mean(row for i in range(options.songs) for row in covers(pipeline, judge, options.out, i)),
        "repaint": _mean(row for i in range(options.songs) for row in repaints(pipeline, judge, options.out, i)),
    }
    results = {"weights": options.weights, "songs": options.songs, "chance": CHANCE, **tables}
    with atomic(options.out / "tasks.json") as aside:
        aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(tables, options.out / "tasks.png")
    print(json.dumps(results, indent=2))


def covers(pipeline: Pipeline, judge: Oracles, folder: Path, index: int) -> Iterator[dict[str, float]]:
    """One source, covered at every strength on another instrument."""
    truth, _ = draw_song(SEED, index)
    asked = replace(truth, instrument=_other(truth))
    request = _request(asked, index) | {"task": "cover", "source": _source(folder, truth, index), "seconds": None}
    for strength in STRENGTHS:
        (audio,) = pipeline.generate([Request(**request, cover_strength=strength)])
        scores = judge.score(audio.samples, asked)
        kept = judge.score(audio.samples, truth)["instrument"]
        yield {"strength": strength, **{name: scores[name] for name in COVERED}, "source's instrument": kept}


def repaints(pipeline: Pipeline, judge: Oracles, folder: Path, index: int) -> Iterator[dict[str, float]]:
    """One source, its second half repainted at every strength as another song of the same tempo."""
    truth, other = draw_song(SEED, index)[0], draw_song(SEED + 1, index)[0]
    asked = replace(truth, tonic=other.tonic, mode=other.mode, instrument=_other(truth), drums=other.drums)
    source, middle = _source(folder, truth, index), truth.frames // 2
    request = _request(asked, index) | {"task": "repaint", "source": source, "start": middle / 25, "seconds": None}
    samples = torch.from_numpy(render(truth))
    kept = pipeline.decode(pipeline.encode(Audio(samples, 48_000)).mean)[0]
    for strength in STRENGTHS:
        (audio,) = pipeline.generate([Request(**request, repaint_strength=strength)], normalize="none")
        begin, fade = middle * 1920, round(25 * (1 - strength)) * 1920
        outside, rest = audio.samples[:, : begin - fade], kept[:, : begin - fade]
        level = 10 * torch.log10((outside - rest).square().mean() / rest.square().mean() + 1e-12)
        scores = judge.score(audio.samples[:, begin:], _part(asked, truth.frames - middle))
        yield {"strength": strength, **{name: scores[name] for name in REPAINTED}, "outside dB": float(level)}


def draw(tables: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Every score over the strength, a panel a task."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(tables), figsize=(9, 3.5), sharey=True)
    for panel, (task, rows) in zip(panels, tables.items(), strict=True):
        for name in rows[0].keys() - {"strength", "outside dB"}:
            panel.plot([row["strength"] for row in rows], [row[name] for row in rows], marker="o", label=name)
        panel.set(xlabel=f"{task}_strength", ylim=(0, 1.05), title=task)
        panel.legend(fontsize="small")
    panels[0].set_ylabel("share that the oracle reads as asked")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _request(truth: Truth, index: int) -> dict[str, object]:
    return asdict(describe(truth, np.random.default_rng(index))) | {"seed": index}


def _source(folder: Path, truth: Truth, index: int) -> str:
    path = folder / "sources" / f"{index:04d}.flac"
    return str(path if path.is_file() else Audio(torch.from_numpy(render(truth)), 48_000).save(path))


def _part(truth: Truth, frames: int) -> Truth:
    """``truth`` for a song of only ``frames``."""
    syllables = -(-frames // (BEATS_PER_SYLLABLE * truth.beat_frames))
    return replace(truth, frames=frames, syllables=truth.syllables[:syllables])


def _other(truth: Truth) -> str:
    """Another instrument, the same for the same truth."""
    return INSTRUMENTS[(INSTRUMENTS.index(truth.instrument) + 1) % len(INSTRUMENTS)]


def _mean(rows: Iterator[dict[str, float]]) -> list[dict[str, float]]:
    """Means by strength."""
    rows = list(rows)
    groups = [[row for row in rows if row["strength"] == strength] for strength in STRENGTHS]
    return [{name: float(np.mean([row[name] for row in group])) for name in group[0]} for group in groups]


if __name__ == "__main__":
    main()
