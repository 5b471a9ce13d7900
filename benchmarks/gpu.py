"""XL training with random weights on this GPU: peak memory compared with the estimate, songs per second, utilisation.

``python -m acestep bench gpu --json benchmarks/results/gpu.json``. Each experiment runs with the
parts of ``train.py``, a full-size network, the micro world's text encoder and autoencoder, and random latents.
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

from acestep.cli.bench_memory import config_name, training_memory
from acestep.config.run import build_job, build_nodes, build_values, compose_config
from acestep.data.store import FORMAT, autoencoder_settings, shard_table, write_settings, write_shard
from acestep.memory import GIB, peak_memory, stored_bytes
from acestep.pipeline.build import load_autoencoder
from acestep.training.flops import utilisation
from benchmarks.measure import Run, bench_parser, machine

PARTS = "micro_base"
PACKAGES = ("torch", "lightning", "torchao", "peft")
EXPERIMENTS = ("xl_lora", "xl_lora_16gb", "xl_sft")
READING = """predicted GiB: by bench memory --experiment, with the micro world's text encoder and without CUDA's own
memory. peak GiB: peak memory of tensors. utilisation: operations per second, and their fraction of the device's peak if
it is known."""
"""Explanation of the columns."""
WARM_UP = 4
"""Steps excluded from the timing: kernels are selected, optimiser states allocated."""


@dataclass(frozen=True, kw_only=True)
class GpuResult:
    """Result of one experiment.

    Attributes:
        experiment: its name.
        device: name of the device.
        trained: trainable parameters.
        steps: of the optimiser.
        predicted: estimated bytes, without CUDA's own memory.
        peak: peak bytes of tensors.
        songs_per_second: median, after the warm-up.
        utilisation: operations per second, and their fraction of the device's peak if it is known.
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
        self._since = perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
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
    write_shard(folder / "songs-00000.parquet", shard_table(rows, settings))
    return folder


def measure(experiment: str, store: Path, folder: Path, steps: int, overrides: Sequence[str] = ()) -> GpuResult:
    """Train ``experiment`` for some steps, in this process, on one device."""
    cfg = _config(experiment, store, folder, steps, overrides)
    nodes = build_nodes(cfg)
    job = build_job(cfg, nodes)
    text_encoder = stored_bytes(job.module.pipeline.conditioner.text_encoder)  # type: ignore[union-attr, arg-type]
    predicted = training_memory(cfg).plan(others=text_encoder).total
    clock = Clock()
    trainer = nodes["trainer"]([*build_values(cfg.callbacks), clock], build_values(cfg.logger))
    trainer.fit(job.module, job.data)  # without a final checkpoint, which could fill the disk
    device = job.module.device
    warm = WARM_UP * cfg.trainer.accumulate if steps > WARM_UP else 0
    seconds = median(clock.seconds[warm:])
    return GpuResult(
        experiment=experiment,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        trained=sum(parameter.numel() for parameter in job.module.trained_parameters().values()),
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
    cfg = compose_config("train", [*given, *overrides])
    cfg.trainer.validate_every = steps * cfg.trainer.accumulate
    return cfg


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the given experiments."""
    parser = bench_parser("gpu", __doc__, READING)
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, help=f"default {' '.join(EXPERIMENTS)}")
    parser.add_argument("--steps", type=int, default=20, help="of the optimiser (default 20)")
    parser.add_argument("--frames", type=int, default=3000, help="of each song (default 3000, two minutes)")
    parser.add_argument("overrides", nargs="*", help="further arguments of train.py")
    run = Run.parse(parser, arguments)
    options = run.options
    for experiment in options.experiments:
        config_name("experiment", experiment)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        store = random_store(Path(temporary) / "store", 8, options.frames)
        for experiment in options.experiments:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            rows.append(measure(experiment, store, Path(temporary) / experiment, options.steps, options.overrides))
            # After each experiment, in case a later one fails.
            run.write(machine(PACKAGES), f"medians over steps after the first {WARM_UP}", rows=list(map(asdict, rows)))
    table = Table(*("experiment", "device", "predicted GiB", "peak GiB", "songs/s", "utilisation"))
    for row in rows:
        sizes = (f"{size / GIB:.2f}" for size in (row.predicted, row.peak))
        share = row.utilisation.get("train/utilisation")
        achieved = f"{row.utilisation['train/tflops']:.3g} TFLOP/s" + (f", {share:.0%}" if share else "")
        table.add_row(row.experiment, row.device, *sizes, f"{row.songs_per_second:.3g}", achieved)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
