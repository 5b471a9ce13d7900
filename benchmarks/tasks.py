"""What covers and repaints keep and change in the micro world by strength, measured by the oracles.

``python -m benchmarks.tasks OUT --weights micro --songs 32``; writes OUT/tasks.json and OUT/tasks.png. A cover requests
the source's song with another instrument; its prompt has neither tempo nor key, and the melody is only in the source.
A repaint requests another song of the same tempo in the last two thirds of the source.
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
from acestep.evaluation.metrics.adherence import ORACLES
from acestep.evaluation.statistics import bootstrap, paired_difference
from acestep.files import atomic
from acestep.pipeline.build import weights_fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Request
from acestep.synth import CHANCE, INSTRUMENTS, Oracles, Truth, draw_song, render_song
from acestep.synth.spectra import Spectra, extract_spectra
from acestep.synth.world import FRAME_RATE, describe_song
from acestep.weights.open import find_folder

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COVERED, REPAINTED = ("tempo", "key", "instrument"), ("key", "mode", "instrument", "drums")
LEFT, MELODY = "source's instrument", "source's melody (correlation)"
OUTSIDE, WORST = "outside dB", "worst outside dB"
REACH = "reach before the new part (s)"
AUDIBLE = 1e-3
"""-60 dB relative to the song: larger differences count as changed."""
SEED = 9_001

Scores = dict[str, float]
Table = dict[float, dict[str, list[float]]]


@dataclass(frozen=True)
class Subject:
    """A source with known factors in a file, the target's factors, and the seed of all its takes."""

    truth: Truth
    target: Truth
    path: Path
    index: int

    @property
    def first(self) -> int:
        """First repainted frame."""
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
    pipeline, oracles = Pipeline.from_pretrained(options.weights), Oracles.load(ORACLES)
    covers, repaints = (subjects(options.songs, options.out, kind) for kind in ("cover", "repaint"))

    def swept(kind: str, sources: Sequence[Subject], score: Callable[[Subject, Audio, float], Scores]) -> Table:
        table: Table = {}
        for strength in options.strengths:
            requests = [request(subject, kind, strength) for subject in sources]
            made = pipeline.generate(requests, None, options.batch_size, "none")
            rows = [score(subject, audio, strength) for subject, audio in zip(sources, made, strict=True)]
            table[strength] = {name: [row[name] for row in rows] for name in rows[0]}
            means = ", ".join(f"{name} {np.mean(values):.2f}" for name, values in table[strength].items())
            print(f"{kind} {strength:g}: {means}", flush=True)
        return table

    def of_cover(subject: Subject, audio: Audio, _: float) -> Scores:
        return score_cover(oracles, subject, audio)

    tables = {
        "repaint_strength": swept("repaint_strength", repaints, partial(score_repaint, pipeline, oracles)),
        "source_strength": swept("source_strength", covers, of_cover),
        "cover_strength": swept("cover_strength", covers, of_cover),
    }
    results = {
        "weights": options.weights,
        "weights_sha256": weights_fingerprint(find_folder(options.weights)),
        "songs": options.songs,
        "chance": CHANCE,
        "ceiling": {
            "cover": ceiling(oracles, covers, partly=False),
            "repaint": ceiling(oracles, repaints, partly=True),
        },
        **{name: summary(table) for name, table in tables.items()},
    }
    with atomic(options.out / "tasks.json") as aside:
        aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, tables, options.out / "tasks.png")


def subjects(count: int, folder: Path, kind: str) -> list[Subject]:
    """The source songs; existing files are not rendered again."""
    made = []
    for index in range(count):
        truth, other = draw_song(SEED, index)[0], draw_song(SEED + 1, index)[0]
        target = replace(truth, instrument=INSTRUMENTS[(INSTRUMENTS.index(truth.instrument) + 1) % len(INSTRUMENTS)])
        if kind == "repaint":
            target = replace(target, tonic=other.tonic, mode=other.mode, drums=other.drums)
        path = folder / "sources" / f"{index:04d}.flac"
        if not path.is_file():
            Audio(torch.from_numpy(render_song(truth)), 48_000).save(path)
        made.append(Subject(truth, target, path, index))
    return made


def request(subject: Subject, kind: str, strength: float) -> Request:
    """The request for ``subject`` at ``strength``."""
    song = describe_song(subject.target, np.random.default_rng(subject.index))
    fields = asdict(song) | {"seed": subject.index, "source": str(subject.path), "seconds": None}
    if kind == "repaint_strength":
        return Request(**fields, task="repaint", start=subject.first / FRAME_RATE, repaint_strength=strength)
    # Without tempo and key in the prompt, a cover can only have them from the source's latents or codes.
    shares = {"cover_strength": 0.0} | {kind: strength}
    return Request(**(fields | {"bpm": None, "key": None}), task="cover", **shares)


def score_cover(oracles: Oracles, subject: Subject, audio: Audio) -> Scores:
    """Scores of a cover against its target and its source."""
    spectra = extract_spectra(audio.samples)
    scores = oracles.score(spectra, subject.target)
    left = oracles.score(spectra, subject.truth)["instrument"]
    return {name: scores[name] for name in COVERED} | {LEFT: left, MELODY: likeness(spectra, subject)}


def likeness(spectra: Spectra, subject: Subject) -> float:
    """Correlation of the note activations of a cover and its source over time; 0 by chance."""
    source = extract_spectra(read_audio(subject.path).samples)
    moves = [pitch - pitch.mean(0) for pitch in (spectra.pitch, source.pitch)]
    return float(torch.cosine_similarity(moves[0].flatten(), moves[1].flatten(), dim=0))


def score_repaint(pipeline: Pipeline, oracles: Oracles, subject: Subject, audio: Audio, strength: float) -> Scores:
    """Scores of the new part against its target, and the error of the rest relative to the reconstructed source.

    The rest ends where the latents' cross-fade starts.
    """
    begin = subject.first * pipeline.autoencoder.hop
    fade = round(FRAME_RATE * (1 - strength)) * pipeline.autoencoder.hop
    kept = pipeline.decode(pipeline.encode(read_audio(subject.path)).mean)[0]
    rest, expected = audio.samples[:, : begin - fade], kept[:, : begin - fade]
    scores = oracles.score(audio.samples[:, begin:], _part(subject))
    changed = (audio.samples - kept)[:, :begin].abs().amax(0) > AUDIBLE * kept.square().mean().sqrt()
    reach = (begin - int(changed.int().argmax())) / audio.sample_rate if changed.any() else 0.0
    outside = {REACH: reach, OUTSIDE: _decibels(rest - expected, expected)}
    return {name: scores[name] for name in REPAINTED} | outside


def ceiling(oracles: Oracles, sources: Sequence[Subject], partly: bool) -> Scores:
    """Oracle scores of rendered targets: of the whole song, or of the repainted part."""
    rows = []
    for subject in sources:
        samples, target = torch.from_numpy(render_song(subject.target)), subject.target
        if partly:
            samples, target = samples[:, subject.first * samples.shape[1] // target.frames :], _part(subject)
        rows.append(oracles.score(samples, target))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def summary(table: Table) -> dict[str, object]:
    """Means with intervals by strength; their change from first to last, and the largest step against the trend."""
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
    """Every score over the strength, a panel per kind; bands are 95 % intervals, dotted lines are chance."""
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
    panels[0].set_ylabel("accuracy by the oracles")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _part(subject: Subject) -> Truth:
    """The target with the length of the repainted part."""
    return replace(subject.target, frames=subject.truth.frames - subject.first)


def _decibels(difference: Float[Tensor, "a s"], signal: Float[Tensor, "a s"]) -> float:
    return float(10 * torch.log10(difference.square().mean() / signal.square().mean() + 1e-12))


if __name__ == "__main__":
    main()
