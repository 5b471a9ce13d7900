"""Whether the metrics can be believed, and what scoring costs: figures for the evaluation, from the micro world.

``python -m benchmarks.evaluation corruption`` spoils songs of known truth step by step, asks whether each metric falls
as the oracles do; ``cost`` times a sweep's songs and what comes after them (listening, statistics, the report);
``scale`` asks which guidance scale each metric likes best. Each writes what it found into the documentation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from time import perf_counter, process_time
from typing import Any

import torch

from acestep.config.compose import composed
from acestep.config.run import build
from acestep.evaluation.prompts import MicroPrompts
from acestep.evaluation.report.html import Part, write_report
from acestep.evaluation.report.plots import save
from acestep.evaluation.results import Results, paired
from acestep.evaluation.samples import ClipStore
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.sweep import CEILING, Cell
from acestep.pipeline.pipeline import Pipeline
from benchmarks import trial

HERE = Path(__file__).parent
ORACLES, CLAP = "adherence.mean", "clap.of_mean"


def swept(
    weights: str, songs: int, seed: int, scales: Sequence[float], out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds of generation, what scoring adds to them, seconds of the report, and which scales each metric likes.

    The same songs are made twice: without a metric, and with all of them. What scoring adds is the difference, so that
    each clock holds all that it needs. The ceiling is a score of recordings, so making it counts as scoring. The
    report, with its players, is counted by itself.
    """
    pipeline = Pipeline.from_pretrained(weights)
    clocks = {name: Clock() for name in ("generation", "evaluation", "ceiling", "report")}
    evaluation = Evaluation(
        prompts=MicroPrompts(path=str(out / "world"), songs=songs, seed=seed),
        metrics=composed_metrics(),
        sweep={"guidance": {"scale": list(scales)}},
        available_only=True,
    )
    prompts = evaluation.prompts.load(pipeline.lengths)
    _warm_up(evaluation, pipeline, out)
    with clocks["generation"]:
        replace(evaluation, metrics={}, ceiling=False)(pipeline, pipeline.sampler, out / "unscored")
    with clocks["evaluation"]:
        results = evaluation(pipeline, pipeline.sampler, out / "scored")
        results.write(out / "scored")
    with clocks["ceiling"]:
        ClipStore(out / "ceiling", pipeline, evaluation.batch_size).make(prompts, Cell(CEILING, {}, None))
    with clocks["report"]:
        write_report([Part(results)], out / "scored", "Cost of scoring")
    shares = {}
    for kind in ("wall", "cpu"):
        seconds = {name: getattr(clock, kind) for name, clock in clocks.items()}
        seconds["scoring"] = seconds.pop("evaluation") - seconds["generation"]
        share = {name: seconds[name] / seconds["generation"] for name in ("scoring", "report")}
        shares[kind] = {"seconds": seconds, "by_generation": share}
    asked = {"weights": weights, "songs": songs, "seed": seed, "scales": list(scales)}
    heard = {"threads": torch.get_num_threads(), "metrics": sorted(results.setting.ears)}
    return {**asked, **heard, **shares}, {**asked, **agreement(results, scales)}


def _warm_up(evaluation: Evaluation, pipeline: Pipeline, out: Path) -> None:
    """Two songs with all that follows, so that no clock pays for what is done once in a process."""
    few = replace(evaluation, prompts=MicroPrompts(path=str(out / "few"), songs=2))
    results = few(pipeline, pipeline.sampler, out / "warm")
    results.write(out / "warm")
    write_report([Part(results)], out / "warm", "Cost of scoring")


def agreement(results: Results, scales: Sequence[float]) -> dict[str, Any]:
    """Which scale each metric likes best, and which it cannot tell from that one, prompt by prompt."""
    best = {name: results.best(name) for name in results.headlines}
    as_good = {name: [s for s, cell in zip(scales, results.cells, strict=True) if _is_as_good(results, name, cell)]
               for name in best}  # fmt: skip
    places = [results.cells.index(best[name]) for name in (ORACLES, CLAP)]
    return {
        "best_scale": {name: scales[results.cells.index(cell)] for name, cell in best.items()},
        "steps_between_best_scales": abs(places[0] - places[1]),
        "not_told_from_the_best": as_good,
        "means": {n: [results.interval(n, cell).mean for cell in results.cells] for n in best},
        "ci95": {n: [results.interval(n, cell).bounds for cell in results.cells] for n in best},
    }


def _is_as_good(results: Results, column: str, cell: str) -> bool:
    top, other = (results.values(column, one) for one in (results.best(column), cell))
    shared = sorted(top.keys() & other.keys())
    low, high = paired([top[name] for name in shared], [other[name] for name in shared])["ci95"]
    return bool(low <= 0 <= high)


def cost_told(found: Mapping[str, Any]) -> str:
    """The cost as a part of the documentation's page."""
    seconds, share, wall = found["cpu"]["seconds"], found["cpu"]["by_generation"], found["wall"]["by_generation"]
    asked = f"--songs {found['songs']} --seed {found['seed']}"
    words = (
        f"`python -m benchmarks.evaluation cost {asked}`: {found['songs']} prompts of the micro world at "
        f"{len(found['scales'])} guidance scales, threads: {found['threads']}. "
        f"Without a metric that took {seconds['generation']:.0f} s of processor time. "
        f"With all metrics it took {seconds['scoring']:.0f} s more: scoring adds {share['scoring']:.0%}. In this are "
        f"{seconds['ceiling']:.1f} s for making the ceiling, the recordings through the autoencoder. "
        f"The report with its players took {seconds['report']:.0f} s more, {share['report']:.0%}. "
        f"By the clock on the wall it was {wall['scoring']:.0%} and {wall['report']:.0%}. "
        f"Metrics: {', '.join(found['metrics'])}."
    )
    return f"## What scoring costs\n\n{fill(words, 124)}\n"


def scale_told(found: Mapping[str, Any]) -> str:
    """Which scale is best as a part of the documentation's page."""
    best, good = found["best_scale"], found["not_told_from_the_best"]
    steps = found["steps_between_best_scales"]
    verdict = "the same scale" if not steps else f"{steps} step{'s'[: steps - 1]} of the grid apart"
    asked = f"--songs {found['songs']} --seed {found['seed']}"
    words = (
        f"`python -m benchmarks.evaluation scale {asked}`: do CLAP and the oracles like the same guidance scale? "
        f"The oracles find {best[ORACLES]:g} best, CLAP {best[CLAP]:g}: {verdict}. "
        "Scales that cannot be told from the best, prompt by prompt: "
        f"by the oracles {_listed(good[ORACLES])}, by CLAP {_listed(good[CLAP])}."
    )
    heads = [f"scale {scale:g}" for scale in found["scales"]]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in (ORACLES, CLAP):
        values = zip(found["means"][name], found["ci95"][name], strict=True)
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, (low, high) in values]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n\n".join(["## The best scale", fill(words, 124), "\n".join(rows)]) + "\n"


def _listed(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)


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
    """Run one of the three, print what it found and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("corruption", "cost", "scale"))
    parser.add_argument("--songs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20_000, help="of the songs")
    parser.add_argument("--weights", default="micro")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 8.0])
    parser.add_argument("--folder", type=Path, default=HERE / "results", help="where the numbers go")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="where the picture and the table go")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "corruption":
        found = trial.corruption(options.songs, options.seed)
        save(trial.picture(found), options.docs / "corruption.png")
        part, shown = trial.told(found), found["rank_correlation"]
    else:
        with tempfile.TemporaryDirectory() as out:
            price, scale = swept(options.weights, options.songs, options.seed, options.scales, Path(out))
        found = shown = price if options.what == "cost" else scale
        part = (cost_told if options.what == "cost" else scale_told)(found)
    if (options.docs / "evaluation.md").is_file():
        trial.publish(part, options.docs / "evaluation.md")
    (options.folder / f"evaluation_{options.what}.json").write_text(
        json.dumps(found, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
