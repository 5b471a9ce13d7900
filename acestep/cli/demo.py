"""The demo: from the shipped base checkpoint to a fine-tuned model, a LoRA, a guidance sweep and a report.

Every stage equals a command of the README; finished stages are not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from acestep.data.preprocess import Preprocess
from acestep.evaluation.embedders.micro_clap import MicroClap
from acestep.evaluation.metrics import ClapAdherence, FrechetDistance, OracleAdherence
from acestep.evaluation.prompts import MicroPrompts
from acestep.evaluation.report.html import ReportSection, write_evaluation_report
from acestep.evaluation.results import Results
from acestep.evaluation.statistics import Interval, paired_test
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.sweep import CEILING
from acestep.files import write_json
from acestep.pipeline import Pipeline
from acestep.pipeline.build import load_autoencoder
from acestep.synth import INSTRUMENTS, UNSEEN_INSTRUMENT, write_world

ROOT = Path(__file__).parents[2]
SCALE = "guidance.scale"
MEAN = "adherence.mean"


@dataclass(frozen=True, kw_only=True)
class DemoResults:
    """The evaluations of the demo.

    Attributes:
        sft: the fine-tuned model over guidance scales, 1 among them.
        base: the base model on the same prompts.
        style_sft: the fine-tuned model on prompts of a style that it was not trained on.
        style_lora: the same with the LoRA.
        style_column: score of the style.
    """

    sft: Results
    base: Results
    style_sft: Results
    style_lora: Results
    style_column: str = "adherence.instrument"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo with its sizes.

    Args:
        songs: well-described songs for fine-tuning.
        style_songs: songs of the new style for the LoRA.
        prompts: held-out prompts; the intervals of the summary are over them.
        style_prompts: held-out prompts of the new style.
        scales: guidance scales of the sweep, including 1 (no guidance).
        base_scales: guidance scales for the base model.
        overrides: further arguments of both trainings.
        workers: processes that render and encode.
    """

    songs: int = 800
    style_songs: int = 96
    prompts: int = 100
    style_prompts: int = 40
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    base_scales: tuple[float, ...] = (1.0, 3.0, 5.0)
    overrides: tuple[str, ...] = ()
    workers: int = 2

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Run the stages that are not finished in ``folder``; returns the summary, also in ``summary.json``."""
        timer = StageTimer(folder / "seconds.json")
        with timer("synth"):
            self._write_songs(folder, "sft", self.songs, 301, INSTRUMENTS)
            self._write_songs(folder, "style", self.style_songs, 302, (UNSEEN_INSTRUMENT,))
        with timer("sft"):
            _log("fine-tuning the shipped base on well-described songs")
            self._train("micro_sft", "micro_base", folder / "latents" / "sft", folder / "sft")
        with timer("lora"):
            _log(f"training a LoRA on {self.style_songs} songs with {UNSEEN_INSTRUMENT}, which is new to the model")
            self._train("micro_lora", str(folder / "sft"), folder / "latents" / "style", folder / "lora")
        with timer("sweep"):
            results = self._evaluate(folder)
        history = json.loads((folder / "sft" / "validation.json").read_text(encoding="utf-8"))["val_loss"]
        summary = demo_summary(results, timer.seconds, history)
        write_json(folder / "summary.json", summary)
        results.sft.write(folder / "sweep" / "sft")
        sections = [
            ReportSection(results.sft, "Guidance and fine-tuning", name="fine-tuned", compare={"base": results.base}),
            ReportSection(
                results.style_lora,
                "A style that is new to the model",
                name="with LoRA",
                compare={"without LoRA": results.style_sft},
                songs=4,
            ),
        ]
        _log(f"report: {write_evaluation_report(sections, folder, 'ACE-Step in the micro world')}")
        return summary

    def _write_songs(self, folder: Path, name: str, songs: int, seed: int, instruments: tuple[str, ...]) -> None:
        _log(f"writing {songs} songs to {folder / 'songs' / name}, and their latents to {folder / 'latents' / name}")
        source = write_world(folder / "songs" / name, songs, seed, instruments=instruments, workers=self.workers)
        encode = Preprocess(workers=self.workers)
        encode(source, folder / "latents" / name, partial(load_autoencoder, "micro_base"))

    def _train(self, experiment: str, weights: str, latents: Path, run: Path) -> None:
        if (run / "weights").is_dir():
            return
        arguments = [f"experiment={experiment}", f"weights={weights}", f"data.path={latents}", f"run.dir={run}"]
        status = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments, *self.overrides], check=False
        ).returncode
        if status:
            raise ValueError(f"train.py {' '.join(arguments)}: exit status {status}; see above")

    def _evaluate(self, folder: Path) -> DemoResults:
        prompts = MicroPrompts(path=str(folder / "songs" / "prompts"), songs=self.prompts, seed=20_000)
        style = MicroPrompts(
            path=str(folder / "songs" / "style_prompts"),
            songs=self.style_prompts,
            seed=21_000,
            instruments=(UNSEEN_INSTRUMENT,),
        )

        def evaluate(name: str, weights: str, prompts: MicroPrompts, scales: tuple[float, ...]) -> Results:
            _log(f"{name}: {prompts.songs} songs at guidance {', '.join(f'{scale:g}' for scale in scales)}")
            pipeline = Pipeline.from_pretrained(weights)
            metrics = {
                "adherence": OracleAdherence(),
                "clap": ClapAdherence(embedder=MicroClap()),
                "fad": FrechetDistance(embedder=MicroClap()),
            }
            evaluation = Evaluation(prompts=prompts, metrics=metrics, sweep={"guidance": {"scale": scales}})
            return evaluation(pipeline, pipeline.sampler, folder / "sweep" / name)

        sft, lora = str(folder / "sft"), str(folder / "lora")
        default = (vars(Pipeline.from_pretrained(sft).sampler.guidance)["scale"],)
        return DemoResults(
            sft=evaluate("sft", sft, prompts, self.scales),
            base=evaluate("base", "micro_base", prompts, self.base_scales),
            style_sft=evaluate("style_sft", sft, style, default),
            style_lora=evaluate("style_lora", lora, style, default),
        )


class StageTimer:
    """Seconds of each stage, saved in a file, so that a resumed demo adds to them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time inside to ``stage`` and to ``total``."""
        start = time.monotonic()
        try:
            yield
        finally:
            for name in (stage, "total"):
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            write_json(self.path, self.seconds)


def demo_summary(results: DemoResults, seconds: Mapping[str, float], val_loss: Mapping[str, float]) -> dict[str, Any]:
    """Numbers for JSON, with intervals at 95 % over prompts.

    Args:
        results: the evaluations.
        seconds: of the stages ``synth``, ``sft``, ``lora``, ``sweep``, and ``total``.
        val_loss: ``first`` and ``last`` validation loss of the fine-tuning.
    """
    sft, base, column = results.sft, results.base, results.style_column
    best, unguided, base_best = sft.best(MEAN), _point_at_scale(sft, 1.0), base.best(MEAN)
    style_sft, style_lora = results.style_sft.best(column), results.style_lora.best(column)
    return {
        "adherence": {
            "chance": sft.info.chance["adherence"]["mean"],
            "ceiling": _interval(sft, MEAN, CEILING).mean,
            "shuffled": _interval(sft, MEAN, best, shuffled=True).mean,
            "best_scale": sft.info.points[best][SCALE],
            "at_best": _interval(sft, MEAN, best).mean,
            "at_best_ci95": _interval(sft, MEAN, best).bounds,
            "at_1": _interval(sft, MEAN, unguided).mean,
            "difference_ci95": _difference(sft, best, sft, unguided, MEAN),
            "base_at_best": _interval(base, MEAN, base_best).mean,
            "base_best_scale": base.info.points[base_best].get(SCALE),
            "sft_gain_ci95": _difference(sft, best, base, base_best, MEAN),
            "factors": _factor_scores(sft, best),
            "n": _interval(sft, MEAN, best).n,
        },
        "lora": {
            "sft": _interval(results.style_sft, column, style_sft).mean,
            "lora": _interval(results.style_lora, column, style_lora).mean,
            "difference_ci95": _difference(results.style_lora, style_lora, results.style_sft, style_sft, column),
            "score": column,
        },
        "sweep": _scores_by_scale(sft),
        "base_sweep": _scores_by_scale(base),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "val_loss": {name: val_loss[name] for name in ("first", "last")},
    }


def summary_text(summary: Mapping[str, Any]) -> str:
    """The main numbers of the summary, for a terminal."""
    adherence, lora = summary["adherence"], summary["lora"]
    return (
        f"prompt adherence at guidance {adherence['best_scale']:g}: {adherence['at_best']:.3f}  (without guidance "
        f"{adherence['at_1']:.3f}, base at its best {adherence['base_at_best']:.3f}, prompts shuffled "
        f"{adherence['shuffled']:.3f}, chance {adherence['chance']:.3f}, ceiling {adherence['ceiling']:.3f})\n"
        f"adherence to the new style: {lora['sft']:.3f} before the LoRA, {lora['lora']:.3f} with it\n"
        f"{summary['seconds']['total']:.0f} s in total"
    )


def _factor_scores(results: Results, point: str) -> dict[str, Any]:
    scores = {}
    for name, chance in results.info.chance["adherence"].items():
        column = f"adherence.{name}"
        if column != MEAN:
            at_best = _interval(results, column, point)
            scores[name] = {
                "chance": chance,
                "ceiling": _interval(results, column, CEILING).mean,
                "at_best": at_best.mean,
                "ci95": at_best.bounds,
            }
    return scores


def _scores_by_scale(results: Results) -> list[dict[str, Any]]:
    rows = []
    for point in results.points:
        adherence, clap = _interval(results, MEAN, point), results.interval("clap.of_mean", point)
        rows.append({
            "scale": results.info.points[point].get(SCALE),
            "adherence": adherence.mean,
            "adherence_ci95": adherence.bounds,
            "clap": clap.mean if clap else None,
            "fad": results.sets[point].get("fad", {}).get("fad"),
            "n": adherence.n,
        })  # fmt: skip
    return rows


def _point_at_scale(results: Results, scale: float) -> str:
    for point in results.points:
        if results.info.points[point].get(SCALE) == scale:
            return point
    raise ValueError(f"sweep.guidance.scale: needs {scale:g} among its values; there are {', '.join(results.points)}")


def _difference(a: Results, point_a: str, b: Results, point_b: str, column: str) -> list[float]:
    bounds: list[float] = paired_test(*a.paired_values(column, point_a, b, point_b))["ci95"]
    return bounds


def _interval(results: Results, column: str, point: str, shuffled: bool = False) -> Interval:
    interval = results.interval(column, point, shuffled=shuffled)
    if interval is None:
        raise ValueError("the demo has no scored songs: were its prompts or oracles left out?")
    return interval


def _log(message: str) -> None:
    print(message, flush=True)
