"""What covers and repaints keep and change in the micro world, by its oracles, over their strengths.

``python -m benchmarks.tasks OUT --weights micro --songs 32``; writes OUT/tasks.json and OUT/tasks.png. A cover asks for
the source's song on another instrument; its words tell tempo and key, but the melody is the source's alone.
A repaint asks for another song of the same tempo in the last two thirds of the source.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio, read_audio
from acestep.evaluation.metrics.core import ORACLES
from acestep.evaluation.statistics import bootstrap, paired_difference
from acestep.files import atomic
from acestep.pipeline.build import fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.synth import CHANCE, INSTRUMENTS, Oracles, Truth, describe, draw_song, render
from acestep.synth.spectra import Spectra, listen
from acestep.synth.world import FRAME_RATE
from acestep.types import Request
from acestep.weights.open import find_folder

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COVERED, REPAINTED = ("tempo", "key", "instrument"), ("key", "mode", "instrument", "drums")
LEFT, MELODY = "source's instrument", "source's melody (correlation)"
OUTSIDE, WORST = "outside dB", "worst outside dB"
REACH = "reach before the new part (s)"
AUDIBLE = 1e-3
"""-60 dB of the song's level: what differs by more has been changed."""
SEED = 9_001

Scores = dict[str, float]
Table = dict[float, dict[str, list[float]]]


@dataclass(frozen=True)
class Subject:
    """A song of known truth in a file, what is asked to become of it, and the seed of all its takes."""

    truth: Truth
    asked: Truth
    path: Path
    index: int

    @property
    def first(self) -> int:
        """The frame from which it is repainted."""
        return self.truth.frames // 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", default="micro")
    parser.add_argument("--songs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    options = parser.parse_args(arguments)
    pipeline, judge = Pipeline.from_pretrained(options.weights), Oracles.load(ORACLES)
    covers, repaints = (subjects(options.songs, options.out, kind) for kind in ("cover", "repaint"))

    def swept(kind: str, whose: Sequence[Subject], heard: Callable[[Subject, Audio, float], Scores]) -> Table:
        table: Table = {}
        for strength in options.strengths:
            asked = [request(subject, kind, strength) for subject in whose]
            made = pipeline.generate(asked, None, options.batch_size, "none")
            rows = [heard(subject, audio, strength) for subject, audio in zip(whose, made, strict=True)]
            table[strength] = {name: [row[name] for row in rows] for name in rows[0]}
            means = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in table[strength].items())
            print(f"{kind} {strength:g}: {means}", flush=True)
        return table

    def of_cover(subject: Subject, audio: Audio, _: float) -> Scores:
        return hear_cover(judge, subject, audio)

    tables = {
        "repaint_strength": swept("repaint_strength", repaints, partial(hear_repaint, pipeline, judge)),
        "source_strength": swept("source_strength", covers, of_cover),
        "cover_strength": swept("cover_strength", covers, of_cover),
    }
    results = {
        "weights": options.weights,
        "weights_sha256": fingerprint(find_folder(options.weights)),
        "songs": options.songs,
        "chance": CHANCE,
        "ceiling": {"cover": ceiling(judge, covers, partly=False), "repaint": ceiling(judge, repaints, partly=True)},
        **{name: summary(table) for name, table in tables.items()},
    }
    with atomic(options.out / "tasks.json") as aside:
        aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, tables, options.out / "tasks.png")


def subjects(count: int, folder: Path, kind: str) -> list[Subject]:
    """The songs that every strength starts from; those on files already are not rendered again."""
    made = []
    for index in range(count):
        truth, other = draw_song(SEED, index)[0], draw_song(SEED + 1, index)[0]
        asked = replace(truth, instrument=INSTRUMENTS[(INSTRUMENTS.index(truth.instrument) + 1) % len(INSTRUMENTS)])
        if kind == "repaint":
            asked = replace(asked, tonic=other.tonic, mode=other.mode, drums=other.drums)
        path = folder / "sources" / f"{index:04d}.flac"
        if not path.is_file():
            Audio(torch.from_numpy(render(truth)), 48_000).save(path)
        made.append(Subject(truth, asked, path, index))
    return made


def request(subject: Subject, kind: str, strength: float) -> Request:
    """What is asked of ``subject`` at ``strength``."""
    song = describe(subject.asked, np.random.default_rng(subject.index))
    said = asdict(song) | {"seed": subject.index, "source": str(subject.path), "seconds": None}
    if kind == "repaint_strength":
        return Request(**said, task="repaint", start=subject.first / FRAME_RATE, repaint_strength=strength)
    # Tempo and key are not told: what a cover has of them, it has from the source's latents alone, or its codes alone.
    shares = {"cover_strength": 0.0} | {kind: strength}
    return Request(**(said | {"bpm": None, "key": None}), task="cover", **shares)


def hear_cover(judge: Oracles, subject: Subject, audio: Audio) -> Scores:
    """What a cover has of what was asked, and of its source."""
    spectra = listen(audio.samples)
    scores = judge.score(spectra, subject.asked)
    left = judge.score(spectra, subject.truth)["instrument"]
    return {name: scores[name] for name in COVERED} | {LEFT: left, MELODY: likeness(spectra, subject)}


def likeness(spectra: Spectra, subject: Subject) -> float:
    """How alike the notes of a cover and of its source rise and fall over time: their correlation, 0 by chance."""
    source = listen(read_audio(subject.path).samples)
    moves = [pitch - pitch.mean(0) for pitch in (spectra.pitch, source.pitch)]
    return float(torch.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0))


def hear_repaint(pipeline: Pipeline, judge: Oracles, subject: Subject, audio: Audio, strength: float) -> Scores:
    """What the new part has of what was asked, and how far the rest is from the source as the autoencoder has it.

    The rest ends where the latents' cross-fade begins.
    """
    begin = subject.first * pipeline.autoencoder.hop
    fade = round(FRAME_RATE * (1 - strength)) * pipeline.autoencoder.hop
    kept = pipeline.decode(pipeline.encode(read_audio(subject.path)).mean)[0]
    rest, expected = audio.samples[:, : begin - fade], kept[:, : begin - fade]
    scores = judge.score(audio.samples[:, begin:], _part(subject))
    changed = (audio.samples - kept)[:, :begin].abs().amax(0) > AUDIBLE * kept.square().mean().sqrt()
    reach = (begin - int(changed.int().argmax())) / audio.sample_rate if changed.any() else 0.0
    found = {REACH: reach, OUTSIDE: _decibels(rest - expected, expected)}
    return {name: scores[name] for name in REPAINTED} | found


def ceiling(judge: Oracles, whose: Sequence[Subject], partly: bool) -> Scores:
    """What the oracles hear in songs that are just as asked: in all of each, or where it would be repainted."""
    rows = []
    for subject in whose:
        samples, asked = torch.from_numpy(render(subject.asked)), subject.asked
        if partly:
            samples, asked = samples[:, subject.first * samples.shape[1] // asked.frames :], _part(subject)
        rows.append(judge.score(samples, asked))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def summary(table: Table) -> dict[str, object]:
    """Means with intervals by strength; how far each moves from the first to the last, and its largest step back."""
    draws = torch.Generator().manual_seed(SEED)
    rows, moves = [], {}
    for strength, scores in table.items():
        found = {name: asdict(bootstrap(values, draws)) for name, values in scores.items()}
        worst = {WORST: max(scores[OUTSIDE])} if OUTSIDE in scores else {}
        rows.append({"strength": strength, **found, **worst})
    first, *_, last = table.values()
    for name in first.keys() - {OUTSIDE}:
        move = paired_difference(last[name], first[name], draws)
        steps = np.diff([np.mean(scores[name]) for scores in table.values()])
        back = -steps if move.mean >= 0 else steps
        moves[name] = asdict(move) | {"step_back": float(max(back.max(), 0))}
    return {"rows": rows, "moves": moves}


def draw(results: Mapping[str, object], tables: Mapping[str, Table], path: Path) -> None:
    """Every score over the strength, a panel for each; bands are 95 % intervals, dots are guessing."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(tables), figsize=(12, 3.6), sharey=True)
    for panel, (title, table) in zip(panels, tables.items(), strict=True):
        rows = results[title]["rows"]
        for name in sorted(rows[0].keys() - {"strength", OUTSIDE, WORST}):
            values = [row[name] for row in rows]
            (line,) = panel.plot(list(table), [value["mean"] for value in values], marker="o", label=name)
            low, high = ([value[edge] for value in values] for edge in ("low", "high"))
            panel.fill_between(list(table), low, high, color=line.get_color(), alpha=0.15)
            guess = {MELODY: 0.0, LEFT: CHANCE["instrument"]}.get(name, CHANCE.get(name))
            if guess is not None:
                panel.axhline(guess, color=line.get_color(), linestyle=":", linewidth=1)
        panel.set(xlabel=title, ylim=(-0.05, 1.05))
        panel.legend(fontsize="small")
    panels[0].set_ylabel("share that the oracles read as asked")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _part(subject: Subject) -> Truth:
    """What is asked for, as long as the repainted part."""
    return replace(subject.asked, frames=subject.truth.frames - subject.first)


def _decibels(difference: Float[Tensor, "a s"], signal: Float[Tensor, "a s"]) -> float:
    return float(10 * torch.log10(difference.square().mean() / signal.square().mean() + 1e-12))


if __name__ == "__main__":
    main()
