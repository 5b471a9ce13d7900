"""The summary page of a training run, ``card.md``: data, settings, losses, cost, and links to its songs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib import colormaps
from matplotlib.figure import Figure

from acestep.files import atomic, read_json
from acestep.page import markdown_table
from acestep.training.callbacks.logging import HISTORY
from acestep.training.loggers import read_table
from acestep.training.module import TrainingModule

CARD = "card.md"
LOSS_PLOT = "validation.png"
MAX_STEPS = 8
COSTS = {
    "train/songs_per_second": "songs a second",
    "train/frames_per_second": "latent frames a second",
    "train/data_wait": "share of time spent waiting for data",
    "train/tflops": "TFLOP/s of each device",
    "train/utilisation": "share of the device's peak",
    "train/memory_gib": "peak memory, GiB",
}
Losses = Mapping[str, Mapping[str, float]]
"""Validation losses by step and name, as the ``History`` callback writes them."""


@rank_zero_only
def write_card(folder: Path, module: TrainingModule, trainer: Trainer) -> None:
    """Write ``card.md`` and its plot into the run folder ``folder``, from the files that the run wrote there."""
    record = read_json(folder / "run.json")
    parts = [
        f"# {record['config'].get('name', folder.name)}",
        markdown_table(["", ""], _facts(record, module, trainer).items()),
        "## Validation loss",
        _validation(folder),
        "## Cost and behaviour",
        markdown_table(["", ""], _costs(read_table(folder)).items()),
        "## Songs",
        _song_links(folder),
    ]
    with atomic(folder / CARD) as aside:
        aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _facts(record: Mapping[str, Any], module: TrainingModule, trainer: Trainer) -> dict[str, object]:
    config = record["config"]
    trained = sum(parameter.numel() for parameter in module.trained_parameters().values())
    return {
        "run": record["identity"],
        "start": f"{config['weights']} ({config['network']})",
        "data": ", ".join(f"{name} {value}" for name, value in record["data"].items()),
        "trained parameters": f"{trained:,}",
        "adapter": (config.get("adapter") or {}).get("_target_", "none").rpartition(".")[2],
        "steps": trainer.global_step,
        "steps skipped, gradient not finite": module.gradients.skipped,
        "code": f"{record['git']['commit']}{' with uncommitted changes' if record['git']['dirty'] else ''}",
        "command": f"`{' '.join(record['command'])}`",
    }


def _validation(folder: Path) -> str:
    """Plot and table of the validation losses."""
    if not (folder / HISTORY).exists():
        return "No validation loss was recorded."
    losses: Losses = read_json(folder / HISTORY)["steps"]
    _loss_figure(losses).savefig(folder / LOSS_PLOT, dpi=120)
    names = sorted(next(iter(losses.values())))
    steps = list(losses)
    if len(steps) > MAX_STEPS:
        steps = [*steps[:: max(1, len(steps) // (MAX_STEPS - 1))], steps[-1]]
    rows = [[step, *(f"{losses[step][name]:.4f}" for name in names)] for step in steps]
    table = markdown_table(["step", *(name.removeprefix("val/") for name in names)], rows)
    return f"![Loss by noise level]({LOSS_PLOT})\n\n{table}"


def _costs(metrics: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Means over the run, and the rates at which conditions were dropped."""
    means = {name: sum(values.values()) / len(values) for name, values in metrics.items() if values}
    costs = {label: f"{means[name]:.4g}" for name, label in COSTS.items() if name in means}
    dropped = {name: value for name, value in means.items() if name.startswith("train/dropped/")}
    costs |= {f"conditions dropped: {name.rpartition('/')[2]}": f"{value:.1%}" for name, value in dropped.items()}
    if "train/gradient_norm" in metrics:
        costs["largest gradient norm logged"] = f"{max(metrics['train/gradient_norm'].values()):.4g}"
    return costs


def _song_links(folder: Path) -> str:
    last = sorted((folder / "samples").glob("step_*"))[-1:]
    songs = [path.relative_to(folder).as_posix() for step in last for path in sorted(step.glob("*.flac"))]
    return "\n".join(f"- [{song}]({song})" for song in songs) or "None were generated."


def _loss_figure(losses: Losses) -> Figure:
    """Loss over steps, one line for each noise level."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [int(step) for step in losses]
    names = sorted(name for name in next(iter(losses.values())) if name.startswith("val/loss"))
    for place, name in enumerate(names):
        values = [one[name] for one in losses.values()]
        if name == "val/loss":
            axes.plot(steps, values, color="black", linewidth=2, marker="o", label="all")
        else:
            color = colormaps["viridis"](place / len(names))
            axes.plot(steps, values, color=color, marker=".", label=name.removeprefix("val/loss_t"))
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss")
    axes.legend(title="t (1 = noise)", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure
