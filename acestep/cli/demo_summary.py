"""The demonstration's summary: what fine-tuning and guidance did to prompt adherence, and what a LoRA added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from acestep.evaluation.results import Results, paired
from acestep.evaluation.statistics import Interval
from acestep.evaluation.sweep import CEILING

SCALE = "guidance.scale"
MEAN = "adherence.mean"


@dataclass(frozen=True, kw_only=True)
class DemoResults:
    """The evaluations of a demonstration.

    Attributes:
        sft: the fine-tuned model over guidance scales, 1 among them.
        base: the model it started from, on the same prompts.
        style_sft: the fine-tuned model on prompts of a sub-style that it has not seen.
        style_lora: the same with the LoRA.
        style_column: the score that says whether a song has the sub-style.
    """

    sft: Results
    base: Results
    style_sft: Results
    style_lora: Results
    style_column: str = "adherence.instrument"


def demo_summary(found: DemoResults, seconds: Mapping[str, float], val_loss: Mapping[str, float]) -> dict[str, Any]:
    """JSON-ready numbers, each interval at 95 % over prompts.

    Args:
        found: the evaluations.
        seconds: what each stage took: ``synth``, ``sft``, ``lora``, ``sweep``, ``total``.
        val_loss: ``first`` and ``last`` validation loss of the fine-tuning.
    """
    sft, base = found.sft, found.base
    best, one = sft.best(MEAN), _at_scale(sft, 1.0)
    base_best = base.best(MEAN)
    sft_style, lora_style = found.style_sft.best(found.style_column), found.style_lora.best(found.style_column)
    return {
        "adherence": {
            "chance": sft.setting.chance["adherence"]["mean"],
            "ceiling": _mean(sft, MEAN, CEILING),
            "shuffled": _required(sft.interval(MEAN, best, shuffled=True)).mean,
            "best_scale": sft.setting.cells[best][SCALE],
            "at_best": _mean(sft, MEAN, best),
            "at_best_ci95": _required(sft.interval(MEAN, best)).bounds,
            "at_1": _mean(sft, MEAN, one),
            "difference_ci95": _difference(sft, best, sft, one, MEAN),
            "base_at_best": _mean(base, MEAN, base_best),
            "base_best_scale": base.setting.cells[base_best].get(SCALE),
            "sft_gain_ci95": _difference(sft, best, base, base_best, MEAN),
            "factors": _factors(sft, best),
            "n": _required(sft.interval(MEAN, best)).n,
        },
        "lora": {
            "sft": _mean(found.style_sft, found.style_column, sft_style),
            "lora": _mean(found.style_lora, found.style_column, lora_style),
            "difference_ci95": _difference(
                found.style_lora, lora_style, found.style_sft, sft_style, found.style_column
            ),
            "score": found.style_column,
        },
        "sweep": _sweep(sft),
        "base_sweep": _sweep(base),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "val_loss": {name: val_loss[name] for name in ("first", "last")},
    }


def _factors(results: Results, cell: str) -> dict[str, Any]:
    chances = results.setting.chance["adherence"]
    factors = {}
    for name in chances:
        column = f"adherence.{name}"
        if column == MEAN:
            continue
        at_best = _required(results.interval(column, cell))
        factors[name] = {
            "chance": chances[name],
            "ceiling": _mean(results, column, CEILING),
            "at_best": at_best.mean,
            "ci95": at_best.bounds,
        }
    return factors


def _sweep(results: Results) -> list[dict[str, Any]]:
    rows = []
    for cell in results.cells:
        adherence, clap = _required(results.interval(MEAN, cell)), results.interval("clap.of_mean", cell)
        rows.append({
            "scale": results.setting.cells[cell].get(SCALE),
            "adherence": adherence.mean,
            "adherence_ci95": adherence.bounds,
            "clap": clap.mean if clap else None,
            "fad": results.sets[cell].get("fad", {}).get("fad"),
            "n": adherence.n,
        })  # fmt: skip
    return rows


def _at_scale(results: Results, scale: float) -> str:
    for cell in results.cells:
        if results.setting.cells[cell].get(SCALE) == scale:
            return cell
    raise ValueError(f"sweep.guidance.scale: needs {scale:g} among its values; there are {', '.join(results.cells)}")


def _difference(a: Results, cell_a: str, b: Results, cell_b: str, column: str) -> list[float]:
    first, second = a.values(column, cell_a), b.values(column, cell_b)
    shared = sorted(first.keys() & second.keys())
    bounds: list[float] = paired([first[name] for name in shared], [second[name] for name in shared])["ci95"]
    return bounds


def _mean(results: Results, column: str, cell: str) -> float:
    return _required(results.interval(column, cell)).mean


def _required(interval: Interval | None) -> Interval:
    if interval is None:
        raise ValueError("the demonstration has no scored songs: were its prompts or oracles left out?")
    return interval
