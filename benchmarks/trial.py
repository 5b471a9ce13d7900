"""The metrics on trial: songs of known truth are spoilt step by step; does each metric fall as the oracles do?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from acestep.audio.audio import Audio
from acestep.evaluation.corruptions import CORRUPTIONS
from acestep.evaluation.embedders.micro_clap import MicroClapSpec
from acestep.evaluation.metrics.core import ClapAdherence, FrechetDistance, KernelDistance, OracleAdherence
from acestep.evaluation.metrics.key import KeyAdherence
from acestep.evaluation.metrics.signal import DurationAdherence
from acestep.evaluation.metrics.tempo import TempoAdherence
from acestep.evaluation.prompts import Prompt
from acestep.evaluation.report.plots import ACCENT, GRID, INK, MUTED, WARM
from acestep.synth import Truth, describe, draw_truth, render

RATE = 48_000
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""At the first a song is as it should be."""
SLOWED = 0.6
"""Of the way to the slowest that ``corruptions.slowed`` knows: 1.3 times slower."""
SWAPPED = ("syllables", "instrument", "drums", "beat_frames", "tonic", "mode", "sections")
"""Factors of a song that another song's replace one after another, until it follows another prompt."""
CLAIMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "clap.of_mean": ("adherence.mean", ()),
    "tempo.acc1": ("adherence.tempo", ("slowing", "another tempo")),
    "key.mirex": ("adherence.key", ("another key",)),
    "duration.sounding": ("adherence.mean", ("truncation",)),
}
"""Each adherence metric, the truth that it claims to follow, and the corruptions that it is about; none for all."""
DISTANCES = ("fad.fad", "kad.kad")


def metrics() -> dict[str, Any]:
    """The metrics on trial."""
    clap = MicroClapSpec()
    return {
        "adherence": OracleAdherence(),
        "clap": ClapAdherence(embedder=clap),
        "tempo": TempoAdherence(),
        "key": KeyAdherence(),
        "duration": DurationAdherence(),
        "fad": FrechetDistance(embedder=clap),
        "kad": KernelDistance(embedder=clap),
    }


def spoilt(truth: Truth, level: float, rng: np.random.Generator, swapped: Sequence[str] = SWAPPED) -> Truth:
    """``truth`` with its first factors replaced by those of another song that has others: all of them at level 1."""
    other = draw_truth(rng, instrumental=0.0 if truth.syllables else 1.0)
    while any(getattr(other, name) == getattr(truth, name) for name in ("beat_frames", "tonic")):
        other = draw_truth(rng, instrumental=0.0 if truth.syllables else 1.0)
    changed = {name: getattr(other, name) for name in swapped[: round(level * len(swapped))]}
    count = len(replace(truth, **{name: v for name, v in changed.items() if name == "beat_frames"}).slots)
    sung = changed.pop("syllables", truth.syllables)
    sung = tuple(sung[i % len(sung)] for i in range(count)) if sung else ()
    return replace(truth, **changed, syllables=sung)


def with_other_syllables(truth: Truth, level: float, rng: np.random.Generator) -> Truth:
    """``truth`` with its syllables in another order."""
    return replace(truth, syllables=tuple(truth.syllables[i] for i in rng.permutation(len(truth.syllables))))


Way = Callable[[Truth, float, list[int]], Audio]


def rendered(truth: Truth) -> Audio:
    """The song as it should be."""
    return Audio(torch.from_numpy(render(truth)), RATE)


def by_signal(name: str) -> Way:
    """Spoil the recording."""
    return lambda truth, level, seed: CORRUPTIONS[name](
        rendered(truth), level, torch.Generator().manual_seed(1000 * seed[0] + seed[1])
    )


def by_truth(change: Callable[[Truth, float, np.random.Generator], Truth]) -> Way:
    """Play another song than the prompt asks for."""
    return lambda truth, level, seed: rendered(change(truth, level, np.random.default_rng([*seed, 1])))


BY_STRENGTH: Mapping[str, Way] = {
    **{name: by_signal(name) for name in CORRUPTIONS if name != "slowing"},
    "wrong prompt": by_truth(spoilt),
}
"""Corruptions that every song suffers, more and more."""
BY_SHARE: Mapping[str, Way] = {
    "slowing": lambda truth, _, seed: by_signal("slowing")(truth, SLOWED, seed),
    "another tempo": by_truth(partial(spoilt, swapped=("beat_frames",))),
    "another key": by_truth(partial(spoilt, swapped=("tonic",))),
    "shuffled lyrics": by_truth(with_other_syllables),
}
"""Corruptions of which a song suffers all or nothing, as a tempo is right or wrong: more and more songs do."""
TOLD = {
    "noise": "white noise, from 30 dB below the song to 15 dB above",
    "low-pass": "nothing above a cutoff from 16 kHz down to 150 Hz",
    "clipping": "driven into full scale by up to 45 dB",
    "truncation": "silent after a part; a tenth remains",
    "wrong prompt": "factors of another song, one after another",
    "slowing": "songs played 1.3 times slower, more and more of them",
    "another tempo": "songs in another tempo, more and more",
    "another key": "songs in another key, more and more",
    "shuffled lyrics": "songs with their syllables in another order, more and more",
}


def drawn(songs: int, seed: int) -> tuple[list[Truth], list[Prompt]]:
    """Sung songs and their prompts."""
    truths, prompts = [], []
    for index in range(songs):
        rng = np.random.default_rng([seed, index])
        truths.append(draw_truth(rng, instrumental=0.0))
        words = replace(describe(truths[-1], rng), seconds=rendered(truths[-1]).seconds)
        prompts.append(Prompt(id=str(index), song=words, truth=json.dumps(truths[-1].as_dict())))
    return truths, prompts


Hearings = dict[str, list[Any]]
"""What each metric's ear hears of every song."""


def corruption(songs: int, seed: int) -> dict[str, Any]:
    """Means of every metric by corruption and level, and rank correlations with the truth that each claims."""
    truths, prompts = drawn(songs, seed)
    scorers = {name: metric.load() for name, metric in metrics().items()}

    def spoil(make: Way, level: float) -> Hearings:
        return hear(scorers, [make(truth, level, [seed, index]) for index, truth in enumerate(truths)])

    clean = hear(scorers, [rendered(truth) for truth in truths])
    heard = {way: [clean, *(spoil(make, level) for level in LEVELS[1:])] for way, make in BY_STRENGTH.items()}
    for way, make in BY_SHARE.items():
        worst = spoil(make, 1.0)
        heard[way] = [mixed(clean, worst, round(level * songs)) for level in LEVELS]
    curves: dict[str, dict[str, list[float]]] = {}
    for way, levels in heard.items():
        for one in levels:
            for column, value in means(scorers, one, prompts, clean).items():
                curves.setdefault(way, {}).setdefault(column, []).append(value)
    agreement = {
        way: {
            column: spearman(lines[column], lines[truth])
            for column, (truth, about) in CLAIMS.items()
            if not about or way in about
        }
        | {name: spearman(lines[name], [-v for v in lines["adherence.mean"]]) for name in DISTANCES}
        for way, lines in curves.items()
    }
    return {"songs": songs, "seed": seed, "levels": list(LEVELS), "curves": curves, "rank_correlation": agreement}


def hear(scorers: Mapping[str, Any], audios: Sequence[Audio]) -> Hearings:
    """What every metric hears of the songs; metrics of one ear hear together."""
    ears = {scorer.ear.fingerprint: scorer.ear for scorer in scorers.values()}
    heard = {mark: [ear.hear(audio) for audio in audios] for mark, ear in ears.items()}
    return {name: heard[scorer.ear.fingerprint] for name, scorer in scorers.items()}


def mixed(clean: Hearings, spoilt_ones: Hearings, count: int) -> Hearings:
    """The first ``count`` songs spoilt, the others as they should be."""
    return {name: [*spoilt_ones[name][:count], *clean[name][count:]] for name in clean}


def means(scorers: Mapping[str, Any], heard: Hearings, prompts: Sequence[Prompt], clean: Hearings) -> dict[str, float]:
    """Mean of every score, and every distance to the songs as they should be."""
    found = {}
    for name, scorer in scorers.items():
        if hasattr(scorer, "score"):
            scores = [scorer.score(one, prompt) for one, prompt in zip(heard[name], prompts, strict=True)]
            values = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
        else:
            values = scorer.distance(heard[name], clean[name])
        found |= {f"{name}.{key}": value for key, value in values.items()}
    return found


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, ties at their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def picture(found: Mapping[str, Any]) -> Figure:
    """One panel for each corruption: every metric as a share of its value for clean songs."""
    ways = list(found["curves"])
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    shown = (("adherence.mean", INK, "oracles"), ("clap.of_mean", ACCENT, "CLAP"), ("tempo.acc1", "#3f9c6b", "tempo"),
             ("key.mirex", "#9b59b6", "key"))  # fmt: skip
    for place, way in enumerate(ways, 1):
        axes = figure.add_subplot(-(-len(ways) // 3), 3, place)
        for column, color, name in shown:
            values = np.array(found["curves"][way][column])
            axes.plot(found["levels"], values / values[0], color=color, marker="o", label=name, markersize=3)
        far = np.array(found["curves"][way]["fad.fad"])
        axes.plot(found["levels"], far / max(far.max(), 1e-9), color=WARM, linestyle="--", label="FAD, of its largest")
        axes.set_title(f"{way}   ρ(CLAP) {found['rank_correlation'][way]['clap.of_mean']:.2f}", fontsize=10, loc="left")
        axes.grid(color=GRID)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, colors=MUTED)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", frameon=False, ncols=5)
    return figure


def told(found: Mapping[str, Any]) -> str:
    """The result as a part of the documentation's page."""
    columns = [*CLAIMS, *DISTANCES]
    rows = [f"| corruption | {' | '.join(f'`{column}`' for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for way, rho in found["rank_correlation"].items():
        cells = " | ".join(f"{rho[column]:.2f}" if column in rho else "" for column in columns)
        rows.append(f"| {way}: {TOLD[way]} | {cells} |")
    low = [
        f"`{column}` under {way} ({rho[column]:.2f})"
        for way, rho in found["rank_correlation"].items()
        for column in CLAIMS.keys() & rho.keys()
        if not rho[column] >= 0.9
    ]
    verdict = f"Below 0.9: {', '.join(sorted(low))}." if low else "No adherence metric is below 0.9."
    words = (
        f"`python -m benchmarks.evaluation corruption` takes {found['songs']} songs of the micro world whose truth is "
        f"known, spoils them in {len(found['levels'])} steps, and asks whether each metric falls as the oracles' truth "
        "does. The table holds Spearman's rank correlation of each adherence metric with the truth that it claims to "
        "follow (distances: with the loss of adherence), for the corruptions that the metric is about. "
        f"{verdict} `clap` here is the micro world's own two-tower, which claims to hear all that a prompt says, the "
        "order of syllables too: it was trained on near misses in every fact. LAION's CLAP learned captions; it is "
        "not to be trusted with lyrics. Every number behind it is in `benchmarks/results/evaluation_corruption.json`."
    )
    picture = "![Every metric under every corruption](corruption.svg)"
    return "\n\n".join(["## The metrics on trial", fill(words, 124), "\n".join(rows), picture]) + "\n"


def publish(part: str, page: Path) -> None:
    """Put ``part``, which begins with its heading, into the documentation's page in place of the last one."""
    text = page.read_text(encoding="utf-8")
    start = text.index(part.splitlines()[0])
    end = text.index("\n## ", start) + 1
    page.write_text(text[:start] + part + "\n" + text[end:], encoding="utf-8")
