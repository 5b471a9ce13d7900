"""Validation of the metrics and the cost of scoring, in the micro world.

``python -m benchmarks.evaluation corruption`` corrupts songs of known ground truth step by step and tests whether each
metric falls as the oracles do; ``cost`` times the generation of a sweep's songs, their scoring and the report;
``scale`` compares the guidance scales that metrics choose. Each writes its result into the documentation.
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

from acestep.config.run import build, compose_config
from acestep.evaluation.prompts import MicroPrompts
from acestep.evaluation.report.html import ReportSection, write_evaluation_report
from acestep.evaluation.report.plots import save_figure
from acestep.evaluation.results import Results
from acestep.evaluation.samples import ClipStore
from acestep.evaluation.statistics import paired_test
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.sweep import CEILING, SweepPoint
from acestep.pipeline.pipeline import Pipeline
from benchmarks import corruption

HERE = Path(__file__).parent
ORACLES, CLAP = "adherence.mean", "clap.of_mean"


def run_sweep(
    weights: str, songs: int, seed: int, scales: Sequence[float], out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Costs of generation, scoring and the report, and the scales that each metric chooses.

    The same songs are generated twice, without metrics and with all of them; the cost of scoring is the difference.
    Generating the ceiling is part of scoring. The report, with its players, is timed separately.
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
        ClipStore(out / "ceiling", pipeline, evaluation.batch_size).make(prompts, SweepPoint(CEILING, {}, None))
    with clocks["report"]:
        write_evaluation_report([ReportSection(results)], out / "scored", "Cost of scoring")
    shares = {}
    for kind in ("wall", "cpu"):
        seconds = {name: getattr(clock, kind) for name, clock in clocks.items()}
        seconds["scoring"] = seconds.pop("evaluation") - seconds["generation"]
        share = {name: seconds[name] / seconds["generation"] for name in ("scoring", "report")}
        shares[kind] = {"seconds": seconds, "by_generation": share}
    settings = {"weights": weights, "songs": songs, "seed": seed, "scales": list(scales)}
    setup = {"threads": torch.get_num_threads(), "metrics": sorted(results.info.extractors)}
    return {**settings, **setup, **shares}, {**settings, **scale_agreement(results, scales)}


def _warm_up(evaluation: Evaluation, pipeline: Pipeline, out: Path) -> None:
    """A run of two songs, so that one-time costs of the process are not timed."""
    few = replace(evaluation, prompts=MicroPrompts(path=str(out / "few"), songs=2))
    results = few(pipeline, pipeline.sampler, out / "warm")
    results.write(out / "warm")
    write_evaluation_report([ReportSection(results)], out / "warm", "Cost of scoring")


def scale_agreement(results: Results, scales: Sequence[float]) -> dict[str, Any]:
    """The best scale by each metric, and the scales without a significant paired difference to it."""
    best = {name: results.best(name) for name in results.headlines}
    as_good = {name: [s for s, point in zip(scales, results.points, strict=True) if _is_as_good(results, name, point)]
               for name in best}  # fmt: skip
    indices = [results.points.index(best[name]) for name in (ORACLES, CLAP)]
    return {
        "best_scale": {name: scales[results.points.index(point)] for name, point in best.items()},
        "steps_between_best_scales": abs(indices[0] - indices[1]),
        "not_told_from_the_best": as_good,
        "means": {n: [results.interval(n, point).mean for point in results.points] for n in best},
        "ci95": {n: [results.interval(n, point).bounds for point in results.points] for n in best},
    }


def _is_as_good(results: Results, column: str, point: str) -> bool:
    top, other = (results.values(column, one) for one in (results.best(column), point))
    shared = sorted(top.keys() & other.keys())
    low, high = paired_test([top[name] for name in shared], [other[name] for name in shared])["ci95"]
    return bool(low <= 0 <= high)


def cost_section(result: Mapping[str, Any]) -> str:
    """The cost as a section of the documentation."""
    seconds, share, wall = result["cpu"]["seconds"], result["cpu"]["by_generation"], result["wall"]["by_generation"]
    text = (
        f"`python -m benchmarks.evaluation cost --songs {result['songs']} --seed {result['seed']}`: {result['songs']} "
        f"prompts of the micro world at {len(result['scales'])} guidance scales, {result['threads']} threads. "
        f"Without metrics: {seconds['generation']:.0f} s of processor time. "
        f"All metrics: {seconds['scoring']:.0f} s more ({share['scoring']:.0%}), of which {seconds['ceiling']:.1f} s "
        f"generate the ceiling. The report with its players: {seconds['report']:.0f} s more ({share['report']:.0%}). "
        f"In wall-clock time: {wall['scoring']:.0%} and {wall['report']:.0%}. "
        f"Metrics: {', '.join(result['metrics'])}."
    )
    return f"## Cost of scoring\n\n{fill(text, 132)}\n"


def scale_section(result: Mapping[str, Any]) -> str:
    """The best scales as a section of the documentation."""
    best, good = result["best_scale"], result["not_told_from_the_best"]
    steps = result["steps_between_best_scales"]
    distance = "the same scale" if not steps else f"{steps} grid step{'s'[: steps - 1]} apart"
    text = (
        f"`python -m benchmarks.evaluation scale --songs {result['songs']} --seed {result['seed']}`: do CLAP and the "
        f"oracles choose the same guidance scale? The oracles choose {best[ORACLES]:g}, CLAP {best[CLAP]:g}, "
        f"{distance}. "
        "Scales whose difference to the best has an interval containing 0: "
        f"oracles {_listed(good[ORACLES])}; CLAP {_listed(good[CLAP])}."
    )
    heads = [f"scale {scale:g}" for scale in result["scales"]]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in (ORACLES, CLAP):
        values = zip(result["means"][name], result["ci95"][name], strict=True)
        cells = [f"{mean:.3f} ({low:.3f} to {high:.3f})" for mean, (low, high) in values]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n\n".join(["## The best scale", fill(text, 132), "\n".join(rows)]) + "\n"


def _listed(scales: Sequence[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)


class Clock:
    """Seconds spent inside, summed over entries: wall-clock time, and processor time of this process."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Clock:
        self._started = perf_counter(), process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += perf_counter() - self._started[0]
        self.cpu += process_time() - self._started[1]


def composed_metrics() -> Mapping[str, Any]:
    """The metrics of ``evaluate.py eval=micro``."""
    return build(compose_config("evaluate", ["eval=micro", "out=none"]).eval).metrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the three benchmarks, print and write its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("corruption", "cost", "scale"))
    parser.add_argument("--songs", type=int, default=64)
    parser.add_argument("--seed", type=int, default=20_000, help="of the songs")
    parser.add_argument("--weights", default="micro")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0, 5.0, 8.0])
    parser.add_argument("--folder", type=Path, default=HERE / "results", help="folder of the numbers")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs", help="folder of the figure and the tables")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.what == "corruption":
        result = corruption.corruption(options.songs, options.seed)
        save_figure(corruption.corruption_figure(result), options.docs / "corruption.png")
        section, shown = corruption.corruption_section(result), result["rank_correlation"]
    else:
        with tempfile.TemporaryDirectory() as out:
            cost, scale = run_sweep(options.weights, options.songs, options.seed, options.scales, Path(out))
        result = shown = cost if options.what == "cost" else scale
        section = (cost_section if options.what == "cost" else scale_section)(result)
    if (options.docs / "evaluation.md").is_file():
        corruption.publish(section, options.docs / "evaluation.md")
    (options.folder / f"evaluation_{options.what}.json").write_text(
        json.dumps(result, indent=2) + "\n", encoding="utf-8"
    )
    print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
