"""The ablation ``sweep=cfg_dropout`` at micro scale: four condition dropout rates and their guidance curves.

``python -m benchmarks.cfg_dropout FOLDER --out docs`` makes it and writes ``cfg_dropout.json`` and ``cfg_dropout.png``;
``--check docs/cfg_dropout.json`` makes it again and compares. A folder that holds a part goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from acestep.data.preprocess import Preprocess
from acestep.evaluation.metrics import OracleAdherence
from acestep.evaluation.prompts import MicroPrompts
from acestep.evaluation.suite import Evaluation
from acestep.files import atomic
from acestep.flow.noise import normal
from acestep.flow.objective import FlowMatching
from acestep.flow.timesteps import validation_grid
from acestep.pipeline.build import load_autoencoder
from acestep.pipeline.pipeline import Pipeline
from acestep.synth import write_world
from acestep.training.datamodule import DataConfig, LatentDataModule
from acestep.training.loggers import read_table
from acestep.training.module import derived_generator
from acestep.weights.open import open_checkpoint

ROOT = Path(__file__).parents[1]
BASE = "micro_base"
SCALES = (1.0, 3.0, 7.0)
TOLERANCE = {"adherence": 0.03, "loss": 0.01}
"""Absolute for adherence, relative for losses: another processor sums in another order."""


def make(folder: Path, songs: int, prompts: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Make songs, trainings and evaluations that ``folder`` does not have yet; returns all results as JSON types."""
    source = write_world(folder / "songs", songs, 501)
    store = folder / "latents"
    Preprocess()(source, store, partial(load_autoencoder, BASE))
    sweep = ["experiment=micro_cfg_dropout", "sweep=cfg_dropout", f"hydra.sweep.dir={folder}/runs"]
    subprocess.run([sys.executable, "train.py", *sweep, f"data.path={store}", *overrides], cwd=ROOT, check=True)
    found = [path.parent for path in (folder / "runs").glob("*/run.json")]
    runs = {_config(path)["objective"]["dropout"]["rate"]: path for path in found}
    setting = {"base": _base_hash(), "songs": songs, "prompts": prompts, "scales": SCALES, "tolerance": TOLERANCE}
    setting["steps"] = _config(next(iter(runs.values())))["trainer"]["max_steps"]
    evaluated = MicroPrompts(path=str(folder / "prompts"), songs=prompts, seed=23_000)
    return {
        **setting,
        "rates": [{"rate": rate, **_found(runs[rate], store, evaluated, folder)} for rate in sorted(runs)],
    }


def _base_hash() -> str:
    """Hash of the base's DiT, condition encoder and null embedding."""
    digest, network = hashlib.sha256(), open_checkpoint(BASE).network
    for name in sorted(network):
        if name.startswith(("decoder.", "encoder.", "null_condition_emb")):
            digest.update(name.encode() + network[name].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _config(run: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    return config


def _found(run: Path, store: Path, prompts: MicroPrompts, folder: Path) -> dict[str, Any]:
    pipeline = Pipeline.from_pretrained(run)
    sweep = {"guidance": {"scale": SCALES}}
    evaluation = Evaluation(prompts=prompts, metrics={"adherence": OracleAdherence()}, sweep=sweep, ceiling=False)
    results = evaluation(pipeline, pipeline.sampler, folder / "samples")
    curve = []
    for cell, scale in zip(results.points, SCALES, strict=True):
        interval = results.interval("adherence.mean", cell)
        assert interval is not None
        curve.append({"scale": scale, "adherence": interval.mean, "low": interval.low, "high": interval.high})
    dropped = read_table(run)["train/dropped/all"].values()
    return {"realised": sum(dropped) / len(dropped), **_losses(pipeline, store, run), "curve": curve}


@torch.no_grad()
def _losses(pipeline: Pipeline, store: Path, run: Path) -> dict[str, float]:
    """Held-out loss with the true and with the null conditions over a grid of times."""
    config = _config(run)
    data = LatentDataModule(DataConfig(path=str(store), held_out=config["data"]["held_out"]), config["seed"])
    batch = data.collate([data.validation[index] for index in range(len(data.validation))])
    conditioner, network = pipeline.conditioner, pipeline.network
    given = network.condition(conditioner.encode(batch.songs, batch.frames), conditioner.silence)
    noise = normal(batch.mean.shape, [derived_generator(0, "ablation", song) for song in batch.indices])
    objective, times = FlowMatching(), validation_grid(8)

    def loss(conditions: Any) -> float:
        found = [
            objective.evaluate_at(network.velocity, batch.mean.float(), conditions, t.expand(len(batch)), noise).mean
            for t in times
        ]
        return float(torch.stack(found).mean())

    return {"loss_given": loss(given), "loss_null": loss(network.null(given))}


def differences(found: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Differences between ``found`` and ``stored`` beyond the tolerance, as text.

    Raises:
        ValueError: their settings differ.
    """
    for key in ("base", "songs", "prompts", "steps"):
        if found[key] != stored[key]:
            raise ValueError(f"check: {key} is {found[key]}, and was {stored[key]}; only the same can be compared")
    allowed, messages = stored["tolerance"], []
    for one, other in zip(found["rates"], stored["rates"], strict=True):
        for name in ("loss_given", "loss_null"):
            if abs(one[name] / other[name] - 1) > allowed["loss"]:
                messages.append(f"rate {one['rate']:g}: {name} is {one[name]:.4f}, and was {other[name]:.4f}")
        for here, there in zip(one["curve"], other["curve"], strict=True):
            if abs(here["adherence"] - there["adherence"]) > allowed["adherence"]:
                messages.append(
                    f"rate {one['rate']:g}, scale {here['scale']:g}: adherence is {here['adherence']:.3f}, and was "
                    f"{there['adherence']:.3f}"
                )
    return messages


def draw(found: Mapping[str, Any]) -> Figure:
    """One curve per rate, with its confidence interval over prompts."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(found["rates"]):
        color = (0.15, 0.3 + 0.15 * place, 0.95 - 0.25 * place)
        at = [point["scale"] for point in row["curve"]]
        axes.plot(
            at, [point["adherence"] for point in row["curve"]], color=color, marker="o", label=f"p = {row['rate']:g}"
        )
        low, high = ([point[name] for point in row["curve"]] for name in ("low", "high"))
        axes.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
    axes.set_xlabel("guidance scale")
    axes.set_ylabel("adherence to the prompt (95 % over prompts)")
    axes.legend(title="conditions dropped")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ablation, and write or compare its results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cfg_dropout", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where songs, runs and sounds go")
    parser.add_argument("--songs", type=int, default=120, help="to train on (default 120)")
    parser.add_argument("--prompts", type=int, default=24, help="to ask each run for (default 24)")
    parser.add_argument("--out", type=Path, help="write cfg_dropout.json and cfg_dropout.png there")
    parser.add_argument("--check", type=Path, metavar="JSON", help="compare with these figures; exit 1 if they differ")
    parser.add_argument("overrides", nargs="*", help="further arguments of train.py")
    options = parser.parse_intermixed_args(arguments)
    found = make(options.folder.resolve(), options.songs, options.prompts, options.overrides)
    for row in found["rates"]:
        curve = "  ".join(f"{point['scale']:g}: {point['adherence']:.3f}" for point in row["curve"])
        losses = f"loss {row['loss_given']:.4f}, null {row['loss_null']:.4f}"
        print(f"p = {row['rate']:<5g} dropped {row['realised']:.3f}  {losses}  {curve}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        with atomic(options.out / "cfg_dropout.json") as aside:
            aside.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        draw(found).savefig(options.out / "cfg_dropout.png", dpi=120)
    if not options.check:
        return 0
    messages = differences(found, json.loads(options.check.read_text(encoding="utf-8")))
    print("\n".join(messages) or f"as in {options.check}")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
