"""The XL trainings at random weights on the GPU at hand: peak memory beside the plan's, songs a second, utilisation.

``python -m acestep bench gpu --json benchmarks/results/gpu.json``. Each experiment runs by ``train.py``'s own parts,
with the micro world's text encoder and autoencoder beside a network of full size, on a store of random latents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from acestep.cli.bench_memory import config_name, planned
from acestep.config.compose import composed
from acestep.config.jobs import build_job
from acestep.config.run import build, built_values, check
from acestep.data.settings import FORMAT, autoencoder_settings, write_settings
from acestep.data.store import write_shard
from acestep.memory import GIB, peak_memory, stored_bytes
from acestep.pipeline.build import load_autoencoder
from acestep.training.flops import utilisation
from benchmarks.measure import Run, bench_parser, machine

PARTS = "micro_base"
PACKAGES = ("torch", "lightning", "torchao", "peft")
EXPERIMENTS = ("xl_lora", "xl_lora_16gb", "xl_sft")
READING = """predicted GiB: by bench memory --experiment, with the micro world's text encoder and without what CUDA
holds for itself. peak GiB: what tensors took at most. utilisation: operations a second, and their share of the device's
peak where that is known."""
"""What the columns say."""
WARM_UP = 4
"""Steps that do not count: kernels are chosen, states made."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One experiment, measured.

    Attributes:
        experiment: its name.
        device: what it ran on.
        trained: parameters.
        steps: of the optimiser.
        predicted: bytes by ``training.memory``, without what CUDA holds beside tensors.
        peak: bytes that tensors took at most.
        songs_per_second: over the steps after the first.
        utilisation: operations a second, and their share of the device's peak where that is known.
        loss: of the last batch, per value.
    """

    experiment: str
    device: str
    trained: int
    steps: int
    predicted: int
    peak: int
    songs_per_second: float
    utilisation: dict[str, float]
    loss: float


class Clock(Callback):
    """Seconds and operations of each batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.flops: list[float] = []
        self.loss = float("nan")

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin."""
        self._since = perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Wait for the device, and note."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.seconds.append(perf_counter() - self._since)
        self.flops.append(float(outputs["flops"]))
        self.loss = float(outputs["per_song"].mean())


def random_store(folder: Path, songs: int, frames: int) -> Path:
    """Latents of random songs."""
    settings = {"format": FORMAT, **autoencoder_settings(load_autoencoder(PARTS))}
    random, rows = np.random.default_rng(0), []
    for index in range(songs):
        row: dict[str, Any] = dict.fromkeys(("bpm", "key", "time_signature", "truth"))
        row |= {"source": f"{index}.flac", "sha256": str(index), "seconds": frames / 25, "frames": frames}
        row |= {"caption": f"song {index}", "lyrics": "[verse]\nla la la", "language": "en"}
        row |= {"mean": random.normal(size=(frames, 64)), "scale": np.full((frames, 64), 0.1)}
        rows.append(row)
    folder.mkdir(parents=True)
    write_settings(folder, settings)
    write_shard(folder / "songs-00000.parquet", rows, settings)
    return folder


def measure(experiment: str, store: Path, folder: Path, steps: int, overrides: Sequence[str] = ()) -> Found:
    """Train ``experiment`` for some steps, in this process, on one device."""
    cfg = _config(experiment, store, folder, steps, overrides)
    job = build_job(cfg)
    text_encoder = stored_bytes(job.module.pipeline.conditioner.text_encoder)  # type: ignore[union-attr, arg-type]
    predicted = planned(cfg).plan(others=text_encoder).total
    clock = Clock()
    trainer = build(cfg.trainer)([*built_values(cfg.callbacks), clock], built_values(cfg.logger))
    trainer.fit(job.module, job.data)  # and no more: the last checkpoint of a large run would fill a disk
    device = job.module.device
    warm = WARM_UP * cfg.trainer.accumulate if steps > WARM_UP else 0
    seconds = median(clock.seconds[warm:])
    return Found(
        experiment=experiment,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        trained=sum(parameter.numel() for parameter in job.module.trained().values()),
        steps=trainer.global_step,
        predicted=predicted,
        peak=peak_memory(device),
        songs_per_second=cfg.data.batch_size / seconds,
        utilisation=utilisation(median(clock.flops[warm:]) / seconds, device),
        loss=clock.loss,
    )


def _config(experiment: str, store: Path, folder: Path, steps: int, overrides: Sequence[str]) -> DictConfig:
    """The experiment on one device, without songs and checkpoints."""
    given = [f"experiment={experiment}", f"weights={PARTS}", "network=scratch", f"data.path={store}"]
    given += [f"run.dir={folder}", f"trainer.max_steps={steps}", "data.held_out=1", "data.workers=0"]
    given += ["trainer.devices=1", "trainer.strategy=auto", "logger=table", "model.text_hidden_dim=64"]
    given += ["callbacks.sample.every=0", "callbacks.progress=null", "callbacks.checkpoint.every_n_train_steps=1000000"]
    cfg = composed("train", [*given, *overrides])
    cfg.trainer.validate_every = steps * cfg.trainer.accumulate
    check(cfg)
    return cfg


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every experiment asked for."""
    parser = bench_parser("gpu", __doc__, READING)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, help=f"default {' '.join(EXPERIMENTS)}")
    parser.add_argument("--steps", type=int, default=20, help="of the optimiser (default 20)")
    parser.add_argument("--frames", type=int, default=3000, help="of each song (default 3000, two minutes)")
    parser.add_argument("overrides", nargs="*", help="further arguments of train.py")
    run = Run.of(parser, arguments)
    options = run.options
    for experiment in options.experiments:
        config_name("experiment", experiment)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        store = random_store(Path(place) / "store", 8, options.frames)
        for experiment in options.experiments:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            rows.append(measure(experiment, store, Path(place) / experiment, options.steps, options.overrides))
            # After each, lest a later one's end be all that is left.
            run.write(machine(PACKAGES), f"medians over steps after the first {WARM_UP}", rows=list(map(asdict, rows)))
    table = Table(*("experiment", "device", "predicted GiB", "peak GiB", "songs/s", "utilisation"))
    for row in rows:
        sizes = (f"{size / GIB:.2f}" for size in (row.predicted, row.peak))
        share = row.utilisation.get("train/utilisation")
        told = f"{row.utilisation['train/tflops']:.3g} TFLOP/s" + (f", {share:.0%}" if share else "")
        table.add_row(row.experiment, row.device, *sizes, f"{row.songs_per_second:.3g}", told)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
