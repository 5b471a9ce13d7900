"""Whether the metrics can be believed, and what scoring costs: figures for the evaluation, from the micro world.

``python -m benchmarks.evaluation corruption`` spoils songs of known truth step by step and asks whether each metric
falls as the oracles do; ``cost`` times a sweep's songs and what comes after them (listening, statistics, the report),
and says which scale each metric likes best.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from acestep.audio import Audio
from acestep.config.compose import composed
from acestep.config.run import build
from acestep.evaluation.clips import Clip, ClipStore
from acestep.evaluation.corruptions import CORRUPTIONS
from acestep.evaluation.metrics import ClapAdherence, FrechetDistance, KernelDistance, OracleAdherence
from acestep.evaluation.micro_clap import MicroClapSpec
from acestep.evaluation.plots import ACCENT, GRID, INK, MUTED, WARM, save
from acestep.evaluation.prompts import MicroPrompts, Prompt
from acestep.evaluation.report import Part, write_report
from acestep.evaluation.rhythm import TempoAdherence
from acestep.evaluation.signal import DurationAdherence
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.tonality import KeyAdherence
from acestep.pipeline import Pipeline
from acestep.synth import Truth, describe, draw_truth, render

HERE = Path(__file__).parent
RATE = 48_000
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""At the first a song is as it should be."""
SLOWED = 0.6
"""Of the way to the slowest that ``corruptions.slowed`` knows: 1.3 times slower."""
SWAPPED = ("syllables", "instrument", "drums", "beat_frames", "tonic", "mode", "sections")
"""Factors of a song that another song's replace one after another, until it follows another prompt."""
TIED = {
    "clap.of_mean": "adherence.mean",
    "tempo.acc1": "adherence.tempo",
    "key.mirex": "adherence.key",
    "duration.sounding": "adherence.mean",
}
"""Each adherence metric and the truth that it claims to follow."""
FALLS = {
    "clap.of_mean": None,
    "tempo.acc1": {"slowing", "another tempo"},
    "key.mirex": {"another key"},
    "duration.sounding": {"truncation"},
}
"""The corruptions that a metric is about; ``None`` for all."""


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
WAYS = (*BY_STRENGTH, *BY_SHARE)


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


def corruption(songs: int, seed: int = 40_000) -> dict[str, Any]:
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
            for column, truth in TIED.items()
            if FALLS[column] is None or way in FALLS[column]
        }
        | {name: spearman(lines[name], [-v for v in lines["adherence.mean"]]) for name in ("fad.fad", "kad.kad")}
        for way, lines in curves.items()
    }
    return {"songs": songs, "seed": seed, "levels": list(LEVELS), "curves": curves, "rank_correlation": agreement}


def hear(scorers: Mapping[str, Any], audios: Sequence[Audio]) -> Hearings:
    """What every metric hears of the songs."""
    return {name: [scorer.ear.hear(audio) for audio in audios] for name, scorer in scorers.items()}


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
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    shown = (("adherence.mean", INK, "oracles"), ("clap.of_mean", ACCENT, "CLAP"), ("tempo.acc1", "#3f9c6b", "tempo"),
             ("key.mirex", "#9b59b6", "key"))  # fmt: skip
    for place, way in enumerate(ways, 1):
        axes = figure.add_subplot(2, -(-len(ways) // 2), place)
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


def cost(weights: str, songs: int, scales: Sequence[float], out: Path) -> dict[str, Any]:
    """Seconds of generation and of all that follows it, and the best scale to CLAP and to the oracles.

    The recordings' way through the autoencoder, the ceiling, counts as scoring: no song is made there.
    """
    pipeline = Pipeline.from_pretrained(weights)
    making, fill = Clock(), ClipStore.fill

    def timed(self: ClipStore, clips: Sequence[Clip], *args: Any) -> None:
        with making if clips[0].cell.sampler else nullcontext():
            fill(self, clips, *args)

    evaluation = Evaluation(
        prompts=MicroPrompts(path=str(out / "world"), songs=songs, seed=20_000),
        metrics=composed_metrics(),
        sweep={"guidance": {"scale": list(scales)}},
        available_only=True,
    )
    evaluation.prompts.load(pipeline.lengths)
    ClipStore.fill = timed
    try:
        with Clock() as whole:
            results = evaluation(pipeline, pipeline.sampler, out)
            results.write(out)
            write_report([Part(results)], out, "Cost of scoring")
    finally:
        ClipStore.fill = fill
    best = {name: results.setting.cells[results.best(name)]["guidance.scale"] for name in results.headlines}
    apart = abs(scales.index(best["clap.of_mean"]) - scales.index(best["adherence.mean"]))
    return {
        "weights": weights, "songs": songs, "scales": list(scales),
        "generation_s": making.wall, "scoring_s": whole.wall - making.wall,
        "scoring_by_generation": whole.wall / making.wall - 1,
        "generation_cpu_s": making.cpu, "scoring_cpu_s": whole.cpu - making.cpu,
        "scoring_by_generation_cpu": whole.cpu / making.cpu - 1, "best_scale": best,
        "steps_between_best_scales": apart,
        "means": {n: [results.interval(n, cell).mean for cell in results.cells] for n in results.headlines},
    }  # fmt: skip


class Clock:
    """Seconds spent inside, summed over entries: of the wall's clock, and of this process on all its cores."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._started = perf_counter(), process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += perf_counter() - self._started[0]
        self.cpu += process_time() - self._started[1]


def composed_metrics() -> Mapping[str, Any]:
    """The metrics that ``evaluate.py eval=micro`` uses."""
    return build(composed("evaluate", ["eval=micro", "out=none"]).eval).metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two, print what it found and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("corruption", "cost"))
    parser.add_argument("--songs", type=int, default=64)
    parser.add_argument("--weights", default="micro")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 8.0])
    parser.add_argument("--folder", type=Path, default=HERE / "results", help="where the numbers go")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where the picture goes")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "corruption":
        found = corruption(options.songs)
        save(picture(found), options.docs / "corruption.png")
        shown: Any = found["rank_correlation"]
    else:
        with tempfile.TemporaryDirectory() as out:
            found = shown = cost(options.weights, options.songs, options.scales, Path(out))
    (options.folder / f"evaluation_{options.what}.json").write_text(
        json.dumps(found, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
