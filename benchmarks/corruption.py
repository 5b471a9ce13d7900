"""Metrics under corruption: songs of known ground truth are corrupted step by step, and metrics should fall with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
import torchaudio.functional
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders import Features, MicroClap
from acestep.evaluation.metrics import (
    ClapAdherence,
    DurationAdherence,
    FrechetDistance,
    KernelDistance,
    KeyAdherence,
    Metric,
    OracleAdherence,
    SetMetric,
    SongMetric,
    TempoAdherence,
)
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.report.plots import ACCENT, GRID, INK, MUTED, WARM
from acestep.synth import Truth, render_song
from acestep.synth.world import describe_song, draw_truth

RATE = 48_000
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The songs at level 0 are clean."""
SLOWING_LEVEL = 0.6
"""Level of :func:`stretch` in the corruption "slowing": 1.3 times slower."""
FACTORS = ("syllables", "instrument", "drums", "beat_frames", "tonic", "mode", "sections")
"""Factors that are replaced by another song's one after another, until the song follows another prompt."""
TARGETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "clap.of_mean": ("adherence.mean", ()),
    "tempo.acc1": ("adherence.tempo", ("slowing", "another tempo")),
    "key.mirex": ("adherence.key", ("another key",)),
    "duration.sounding": ("adherence.mean", ("truncation",)),
}
"""For each adherence metric, the ground truth that it should follow, and the corruptions that concern it, or all."""
DISTANCES = ("fad.fad", "kad.kad")

Corruption = Callable[[Audio, float, torch.Generator], Audio]
"""From a recording and a level between 0, no change, and 1, severe, to the corrupted recording."""

QUIETEST_NOISE_DB, LOUDEST_NOISE_DB = -30.0, 15.0
HIGHEST_CUTOFF_HZ, LOWEST_CUTOFF_HZ = 16_000.0, 150.0
LARGEST_GAIN_DB = 45.0
SHORTEST_SHARE = 0.1
LARGEST_STRETCH = 1.5
FFT, HOP = 2_048, 512


def add_noise(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """White noise, from 30 dB below the song to 15 dB above it."""
    if level == 0:
        return audio
    decibels = QUIETEST_NOISE_DB + level * (LOUDEST_NOISE_DB - QUIETEST_NOISE_DB)
    noise = torch.randn(audio.samples.shape, generator=generator)
    rms = audio.samples.square().mean().sqrt()
    return _within_full_scale(audio, audio.samples + noise * rms * 10 ** (decibels / 20))


def low_pass(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Low-pass filter with a cutoff that falls from 16 kHz to 150 Hz, evenly in log frequency."""
    if level == 0:
        return audio
    cutoff = HIGHEST_CUTOFF_HZ * (LOWEST_CUTOFF_HZ / HIGHEST_CUTOFF_HZ) ** level
    spectrum = torch.fft.rfft(audio.samples)
    hz = torch.fft.rfftfreq(audio.samples.shape[1], 1 / audio.sample_rate)
    return _within_full_scale(audio, torch.fft.irfft(spectrum / (1 + (hz / cutoff) ** 8), audio.samples.shape[1]))


def clip(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Amplified into full scale by up to 45 dB, then scaled back to the same level."""
    if level == 0:
        return audio
    driven = (audio.samples * 10 ** (level * LARGEST_GAIN_DB / 20)).clamp(-1, 1)
    return _within_full_scale(
        audio, driven * (audio.samples.square().mean() / driven.square().mean().clamp(min=1e-12)).sqrt()
    )


def truncate(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Silence after a part of the length: a tenth remains at level 1."""
    sounding = round(audio.samples.shape[1] * (1 - level * (1 - SHORTEST_SHARE)))
    samples = audio.samples.clone()
    samples[:, sounding:] = 0.0
    return replace(audio, samples=samples)


def stretch(audio: Audio, level: float, generator: torch.Generator) -> Audio:
    """Time-stretched by up to a half at the same pitch (phase vocoder), and cut to the same length."""
    if level == 0:
        return audio
    window = torch.hann_window(FFT)
    spectra = torch.stft(audio.samples, FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, FFT // 2 + 1)[:, None]
    slow = torchaudio.functional.phase_vocoder(spectra, 1 / (1 + level * (LARGEST_STRETCH - 1)), advance)
    samples = torch.istft(slow, FFT, HOP, window=window)[:, : audio.samples.shape[1]]
    return _within_full_scale(audio, samples)


SIGNAL_CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": add_noise,
    "low-pass": low_pass,
    "clipping": clip,
    "truncation": truncate,
    "slowing": stretch,
}


def _within_full_scale(audio: Audio, samples: Float[Tensor, "a s"]) -> Audio:
    """Scaled down if it exceeds full scale."""
    return replace(audio, samples=samples / samples.abs().max().clamp(min=1.0))


def metrics() -> dict[str, Metric]:
    """The metrics under test."""
    clap = MicroClap()
    return {
        "adherence": OracleAdherence(),
        "clap": ClapAdherence(embedder=clap),
        "tempo": TempoAdherence(),
        "key": KeyAdherence(),
        "duration": DurationAdherence(),
        "fad": FrechetDistance(embedder=clap),
        "kad": KernelDistance(embedder=clap),
    }


def replace_factors(truth: Truth, level: float, rng: np.random.Generator, factors: Sequence[str] = FACTORS) -> Truth:
    """``truth`` with its first factors replaced by different ones of another song; all of them at level 1."""
    other = draw_truth(rng, instrumental=0.0 if truth.syllables else 1.0)
    while any(getattr(other, name) == getattr(truth, name) for name in ("beat_frames", "tonic")):
        other = draw_truth(rng, instrumental=0.0 if truth.syllables else 1.0)
    changed = {name: getattr(other, name) for name in factors[: round(level * len(factors))]}
    count = len(replace(truth, **{name: v for name, v in changed.items() if name == "beat_frames"}).slots)
    syllables = changed.pop("syllables", truth.syllables)
    syllables = tuple(syllables[i % len(syllables)] for i in range(count)) if syllables else ()
    return replace(truth, **changed, syllables=syllables)


def shuffle_syllables(truth: Truth, level: float, rng: np.random.Generator) -> Truth:
    """``truth`` with its syllables in another order."""
    return replace(truth, syllables=tuple(truth.syllables[i] for i in rng.permutation(len(truth.syllables))))


CorruptedSong = Callable[[Truth, float, list[int]], Audio]
"""From a song's truth, a level and a seed to the corrupted recording."""


def rendered(truth: Truth) -> Audio:
    """The clean song."""
    return Audio(torch.from_numpy(render_song(truth)), RATE)


def by_signal(name: str) -> CorruptedSong:
    """Corrupt the recording."""
    return lambda truth, level, seed: SIGNAL_CORRUPTIONS[name](
        rendered(truth), level, torch.Generator().manual_seed(1000 * seed[0] + seed[1])
    )


def by_truth(change: Callable[[Truth, float, np.random.Generator], Truth]) -> CorruptedSong:
    """Render another song than the prompt describes."""
    return lambda truth, level, seed: rendered(change(truth, level, np.random.default_rng([*seed, 1])))


BY_STRENGTH: Mapping[str, CorruptedSong] = {
    **{name: by_signal(name) for name in SIGNAL_CORRUPTIONS if name != "slowing"},
    "wrong prompt": by_truth(replace_factors),
}
"""Corruptions of every song, more severe at every level."""
BY_SHARE: Mapping[str, CorruptedSong] = {
    "slowing": lambda truth, _, seed: by_signal("slowing")(truth, SLOWING_LEVEL, seed),
    "another tempo": by_truth(partial(replace_factors, factors=("beat_frames",))),
    "another key": by_truth(partial(replace_factors, factors=("tonic",))),
    "shuffled lyrics": by_truth(shuffle_syllables),
}
"""Corruptions without degrees, of more songs at every level."""
DESCRIPTIONS = {
    "noise": "white noise, from 30 dB below the song to 15 dB above",
    "low-pass": "nothing above a cutoff from 16 kHz down to 150 Hz",
    "clipping": "amplified into full scale by up to 45 dB",
    "truncation": "silence after a part; down to a tenth",
    "wrong prompt": "factors of another song, one after another",
    "slowing": "a growing share of songs played 1.3 times slower",
    "another tempo": "a growing share of songs in another tempo",
    "another key": "a growing share of songs in another key",
    "shuffled lyrics": "a growing share of songs with syllables in another order",
}


def draw_songs(songs: int, seed: int) -> tuple[list[Truth], list[EvaluationPrompt]]:
    """Songs with lyrics, and their prompts."""
    truths, prompts = [], []
    for index in range(songs):
        rng = np.random.default_rng([seed, index])
        truths.append(draw_truth(rng, instrumental=0.0))
        song = replace(describe_song(truths[-1], rng), seconds=rendered(truths[-1]).seconds)
        prompts.append(EvaluationPrompt(id=str(index), song=song, truth=json.dumps(asdict(truths[-1]))))
    return truths, prompts


SongFeatures = dict[str, list[Features]]
"""Features of every song, by metric."""


def corruption(songs: int, seed: int) -> dict[str, Any]:
    """Means of every metric by corruption and level, and rank correlations with the ground truth of each."""
    truths, prompts = draw_songs(songs, seed)
    loaded = {name: metric.load() for name, metric in metrics().items()}

    def corrupted(function: CorruptedSong, level: float) -> SongFeatures:
        return extract(loaded, [function(truth, level, [seed, index]) for index, truth in enumerate(truths)])

    clean = extract(loaded, [rendered(truth) for truth in truths])
    features = {
        name: [clean, *(corrupted(function, level) for level in LEVELS[1:])] for name, function in BY_STRENGTH.items()
    }
    for name, function in BY_SHARE.items():
        worst = corrupted(function, 1.0)
        features[name] = [mixed(clean, worst, round(level * songs)) for level in LEVELS]
    curves: dict[str, dict[str, list[float]]] = {}
    for name, levels in features.items():
        for one in levels:
            for column, value in means(loaded, one, prompts, clean).items():
                curves.setdefault(name, {}).setdefault(column, []).append(value)
    correlations = {
        name: {
            column: spearman(values[column], values[truth])
            for column, (truth, concerned) in TARGETS.items()
            if not concerned or name in concerned
        }
        | {distance: spearman(values[distance], [-v for v in values["adherence.mean"]]) for distance in DISTANCES}
        for name, values in curves.items()
    }
    return {"songs": songs, "seed": seed, "levels": list(LEVELS), "curves": curves, "rank_correlation": correlations}


def extract(metrics: Mapping[str, Metric], songs: Sequence[Audio]) -> SongFeatures:
    """Features of all songs; metrics with the same extractor share them."""
    extractors = {metric.extractor.fingerprint: metric.extractor for metric in metrics.values()}
    features = {key: [extractor.extract(audio) for audio in songs] for key, extractor in extractors.items()}
    return {name: features[metric.extractor.fingerprint] for name, metric in metrics.items()}


def mixed(clean: SongFeatures, corrupted: SongFeatures, count: int) -> SongFeatures:
    """The first ``count`` songs corrupted, the others clean."""
    return {name: [*corrupted[name][:count], *clean[name][count:]] for name in clean}


def means(
    metrics: Mapping[str, Metric], features: SongFeatures, prompts: Sequence[EvaluationPrompt], clean: SongFeatures
) -> dict[str, float]:
    """Mean of every song metric, and every distance to the clean songs."""
    result = {}
    for name, metric in metrics.items():
        if isinstance(metric, SongMetric):
            scores = [metric.score(one, prompt) for one, prompt in zip(features[name], prompts, strict=True)]
            values = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
        elif isinstance(metric, SetMetric):
            values = metric.distance(features[name], clean[name])
        result |= {f"{name}.{key}": value for key, value in values.items()}
    return result


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; ties get their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def corruption_figure(result: Mapping[str, Any]) -> Figure:
    """One panel for each corruption: every metric relative to its value for clean songs."""
    names = list(result["curves"])
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    curves = (("adherence.mean", INK, "oracles"), ("clap.of_mean", ACCENT, "CLAP"), ("tempo.acc1", "#3f9c6b", "tempo"),
             ("key.mirex", "#9b59b6", "key"))  # fmt: skip
    for position, name in enumerate(names, 1):
        axes = figure.add_subplot(-(-len(names) // 3), 3, position)
        for column, color, label in curves:
            values = np.array(result["curves"][name][column])
            axes.plot(result["levels"], values / values[0], color=color, marker="o", label=label, markersize=3)
        distance = np.array(result["curves"][name]["fad.fad"])
        axes.plot(
            result["levels"],
            distance / max(distance.max(), 1e-9),
            color=WARM,
            linestyle="--",
            label="FAD, of its maximum",
        )
        axes.set_title(
            f"{name}   ρ(CLAP) {result['rank_correlation'][name]['clap.of_mean']:.2f}", fontsize=10, loc="left"
        )
        axes.grid(color=GRID)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, colors=MUTED)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, ncols=5)
    return figure


def corruption_section(result: Mapping[str, Any]) -> str:
    """The result as a section of the documentation."""
    columns = [*TARGETS, *DISTANCES]
    rows = [f"| corruption | {' | '.join(f'`{column}`' for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, rho in result["rank_correlation"].items():
        cells = " | ".join(f"{rho[column]:.2f}" if column in rho else "" for column in columns)
        rows.append(f"| {name}: {DESCRIPTIONS[name]} | {cells} |")
    low = [
        f"`{column}` under {name} ({rho[column]:.2f})"
        for name, rho in result["rank_correlation"].items()
        for column in TARGETS.keys() & rho.keys()
        if not rho[column] >= 0.9
    ]
    verdict = f"Below 0.9: {', '.join(sorted(low))}." if low else "No adherence metric is below 0.9."
    text = (
        f"`python -m benchmarks.evaluation corruption` corrupts {result['songs']} songs of the micro world in "
        f"{len(result['levels'])} steps and tests whether each metric falls as the oracles' ground truth does. "
        "The table holds Spearman's rank correlation of each adherence metric with the ground truth of what it "
        "measures (for distances: with the loss of adherence), for the corruptions that concern it. "
        f"{verdict} `clap` is here the micro world's own two-tower model, trained on near misses in every factor, "
        "including the order of syllables. LAION's CLAP was trained on captions; do not use it for lyrics. All numbers "
        "are in `benchmarks/results/evaluation_corruption.json`."
    )
    figure = "![Every metric under every corruption](corruption.svg)"
    return "\n\n".join(["## Metrics under corruption", fill(text, 132), "\n".join(rows), figure]) + "\n"


def publish(section: str, page: Path) -> None:
    """Replace the section of the documentation's page that has the same heading as ``section``."""
    text = page.read_text(encoding="utf-8")
    start = text.index(section.splitlines()[0])
    end = text.index("\n## ", start) + 1
    page.write_text(text[:start] + section + "\n" + text[end:], encoding="utf-8")
