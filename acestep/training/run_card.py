"""A run's card: what was trained on what, at which cost, how its losses went, and where its songs are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib import colormaps
from matplotlib.figure import Figure

from acestep.files import atomic
from acestep.training.callbacks.logging import HISTORY
from acestep.training.loggers import read_table
from acestep.training.module import Trained

CARD = "card.md"
CURVES = "validation.png"
COSTS = {
    "train/songs_per_second": "songs a second",
    "train/frames_per_second": "latent frames a second",
    "train/data_wait": "share of time spent waiting for data",
    "train/tflops": "TFLOP/s of each device",
    "train/utilisation": "share of the device's peak",
    "train/memory_gib": "peak memory, GiB",
}


@rank_zero_only
def write_card(folder: Path, module: Trained, trainer: Trainer) -> None:
    """Write ``card.md`` and its picture into the run folder ``folder``, from what the run left there."""
    story = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    metrics = read_table(folder)
    parts = [
        f"# {story['config'].get('name', folder.name)}",
        _table(_what(story, module, trainer)),
        "## Validation loss",
        _validation(folder),
        "## Cost and behaviour",
        _table(_cost(metrics)),
        "## Songs",
        _songs(folder),
    ]
    with atomic(folder / CARD) as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _what(story: Mapping[str, Any], module: Trained, trainer: Trainer) -> dict[str, Any]:
    config = story["config"]
    trained = sum(parameter.numel() for parameter in module.trained().values())
    return {
        "run": story["identity"],
        "start": f"{config['weights']} ({config['network']})",
        "data": ", ".join(f"{name} {value}" for name, value in story["data"].items()),
        "trained parameters": f"{trained:,}",
        "adapter": (config.get("adapter") or {}).get("_target_", "none").rpartition(".")[2],
        "steps": trainer.global_step,
        "steps skipped, gradient not finite": module.gradients.skipped,
        "code": f"{story['git']['commit']}{' with changes' if story['git']['dirty'] else ''}",
        "command": f"`{' '.join(story['command'])}`",
    }


def _validation(folder: Path) -> str:
    """Picture and table of the losses that ``History`` kept."""
    history = folder / HISTORY
    if not history.exists():
        return "None was kept."
    steps = json.loads(history.read_text(encoding="utf-8"))["steps"]
    _draw(steps).savefig(folder / CURVES, dpi=120)
    return f"![Loss by noise level]({CURVES})\n\n{_losses(steps)}"


def _losses(steps: Mapping[str, Mapping[str, float]]) -> str:
    names = sorted(next(iter(steps.values())))
    shown = list(steps) if len(steps) <= 8 else [*list(steps)[:: max(1, len(steps) // 7)], list(steps)[-1]]
    rows = [f"| {step} | " + " | ".join(f"{steps[step][name]:.4f}" for name in names) + " |" for step in shown]
    heads = " | ".join(name.removeprefix("val/") for name in names)
    return "\n".join([f"| step | {heads} |", "|---" * (len(names) + 1) + "|", *rows])


def _cost(metrics: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Means over all reports, and the rates at which conditions were really dropped."""
    means = {name: sum(values.values()) / len(values) for name, values in metrics.items() if values}
    found = {label: f"{means[name]:.4g}" for name, label in COSTS.items() if name in means}
    dropped = {name: value for name, value in means.items() if name.startswith("train/dropped/")}
    found |= {f"conditions dropped: {name.rpartition('/')[2]}": f"{value:.1%}" for name, value in dropped.items()}
    if "train/gradient_norm" in metrics:
        found["largest gradient norm reported"] = f"{max(metrics['train/gradient_norm'].values()):.4g}"
    return found


def _songs(folder: Path) -> str:
    last = sorted((folder / "samples").glob("step_*"))[-1:]
    songs = [path.relative_to(folder).as_posix() for step in last for path in sorted(step.glob("*.flac"))]
    return "\n".join(f"- [{song}]({song})" for song in songs) or "None were sampled."


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _draw(steps: Mapping[str, Mapping[str, float]]) -> Figure:
    """Loss over steps, one line for each noise level."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    at = [int(step) for step in steps]
    names = sorted(name for name in next(iter(steps.values())) if name.startswith("val/loss"))
    for place, name in enumerate(names):
        values = [losses[name] for losses in steps.values()]
        if name == "val/loss":
            axes.plot(at, values, color="black", linewidth=2, marker="o", label="all")
        else:
            color = colormaps["viridis"](place / len(names))
            axes.plot(at, values, color=color, marker=".", label=name.removeprefix("val/loss_t"))
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss")
    axes.legend(title="t (1 = noise)", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure
