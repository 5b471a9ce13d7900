"""Overhead of Lightning and Hydra: a run with ``train.py``'s parts and a bare PyTorch loop, alternating in one process.

``python -m acestep bench overhead --json FILE``. Both have the same initial weights, songs, random draws and
steps; their losses are compared. Times are processor time, which other programs do not affect.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from acestep.cli.bench_memory import config_name
from acestep.config.run import build, build_job, build_nodes, build_values, compose_config
from acestep.data import EpochBatches
from acestep.data.preprocess import Preprocess
from acestep.pipeline.build import load_autoencoder
from acestep.synth import write_world
from acestep.training.datamodule import LatentDataModule
from acestep.training.dit import sample_latents, task_contexts
from acestep.training.fit import NetworkInit, fit, load_pipeline, set_trainable
from acestep.training.module import derived_generator
from benchmarks.measure import Run, bench_parser, machine

PACKAGES = ("torch", "lightning", "hydra-core")
READING = """bare_s, ours_s: processor seconds a step. overhead: additional time of the run, as a fraction; with
compose: with the time to compose the config, divided by the experiment's steps. loss_difference: the largest relative
difference of the losses."""
"""Explanation of the lines."""
QUIET = ["callbacks.sample.every=0", "callbacks.progress.refresh_rate=10"]


class BareLoop:
    """A minimal training loop: loader, forward and backward pass, clipping, optimiser and learning rate schedule.

    Objective, optimiser and schedule are the experiment's; nothing is from Lightning or Hydra. With EMA in the
    experiment, it is updated too.
    """

    def __init__(self, cfg: DictConfig, steps: int) -> None:
        self.seed, self.batch_size = cfg.seed, cfg.data.batch_size
        self.pipeline = load_pipeline(cfg.weights, build(cfg.model), NetworkInit(cfg.network), cfg.seed)
        self.network = self.pipeline.network.train()
        set_trainable(self.network, cfg.trainable, build(cfg.adapter) or None, cfg.seed)
        self.trained = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        self.objective, self.clip = build(cfg.objective), cfg.trainer.gradient_clip
        self.optimizer = build(cfg.optimizer)(list(self.trained.items()))
        rate = build(cfg.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(step, steps))
        self.decay = cfg.callbacks.ema.decay if cfg.callbacks.ema else None
        self.average = [value.detach().clone() for value in self.trained.values()] if self.decay else []
        self.step, self.losses = 0, []
        data = LatentDataModule(build(cfg.data), cfg.seed)
        order = EpochBatches(len(data.training), self.batch_size, seed=cfg.seed)
        self.batches = _endless(DataLoader(data.training, batch_sampler=order, collate_fn=data.collate))

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            loss = self._loss(next(self.batches))
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained.values(), self.clip)
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(loss.detach())
            self.step += 1
            if self.average:
                decay = min(self.decay, (1 + self.step) / (10 + self.step))
                torch._foreach_lerp_(self.average, [value.detach() for value in self.trained.values()], 1 - decay)

    def _loss(self, batch: Any) -> Tensor:
        indices = range(self.step * self.batch_size, self.step * self.batch_size + len(batch))
        draws = [[derived_generator(self.seed, name, p) for p in indices] for name in ("posterior", "training")]
        conditioner = self.pipeline.conditioner
        with torch.no_grad():
            inputs = conditioner.encode(batch.songs, batch.frames, task_contexts(batch, conditioner.silence))
            conditions = self.network.condition(inputs, conditioner.silence)
        null = self.network.null(conditions)
        return self.objective(self.network.velocity, sample_latents(batch, draws[0]), conditions, null, draws[1]).mean


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


class Alternate(Callback):
    """Runs the bare loop for as many steps after each chunk of the run's, and records both times."""

    def __init__(self, bare: BareLoop, chunk: int) -> None:
        self.bare, self.chunk = bare, chunk
        self.pairs: list[tuple[float, float]] = []
        self.losses: list[Tensor] = []
        self._since: float | None = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index % self.chunk:
            return
        now = process_time()
        if self._since is not None:
            ours = now - self._since
            started = process_time()
            self.bare(self.chunk)
            self.pairs.append((ours, process_time() - started))
        self._since = process_time()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Record the step's loss for the comparison."""
        self.losses.append((outputs["per_song"] * batch.frame_mask.sum(1)).sum() / batch.frame_mask.sum())


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Processor seconds per step, and the overhead of the run as fractions of the bare loop.

    Attributes:
        bare_s: a step of the bare loop, the median over chunks.
        ours_s: a step of the run.
        overhead: median over pairs of chunks of ``ours / bare - 1``.
        compose_s: once, to compose and check the config.
        overhead_with_compose: with ``compose_s`` divided by the experiment's steps.
        loss_difference: largest difference between both losses of a step, relative.
        pairs: of chunks.
        chunk: steps in a chunk.
    """

    bare_s: float
    ours_s: float
    overhead: float
    compose_s: float
    overhead_with_compose: float
    loss_difference: float
    pairs: int
    chunk: int


def measure(store: Path, folder: Path, overrides: Sequence[str], chunks: int, chunk: int) -> Overhead:
    """Train with ``overrides`` of ``train.py`` for ``chunks`` and one to warm up, alternating with the bare loop."""
    steps = (chunks + 2) * chunk
    started = process_time()
    cfg = compose_config("train", [f"data.path={store}", f"run.dir={folder}", *QUIET, *overrides])
    build_nodes(cfg)
    compose_s, wanted = process_time() - started, cfg.trainer.max_steps
    cfg.trainer.max_steps = cfg.trainer.validate_every = steps
    nodes = build_nodes(cfg)
    job, bare = build_job(cfg, nodes), BareLoop(cfg, steps)
    alternate = Alternate(bare, chunk)
    trainer = nodes["trainer"]([*build_values(cfg.callbacks), alternate], build_values(cfg.logger))
    fit(trainer, job.module, job.data, None, folder / "checkpoints" / "last.ckpt")
    theirs, ours = torch.stack(bare.losses), torch.stack(alternate.losses[: len(bare.losses)])
    pairs = alternate.pairs[1:]  # without the warm-up
    overhead = median(one / other - 1 for one, other in pairs)
    bare_s = median(other for _, other in pairs) / chunk
    return Overhead(
        bare_s=bare_s,
        ours_s=median(one for one, _ in pairs) / chunk,
        overhead=overhead,
        compose_s=compose_s,
        overhead_with_compose=overhead + compose_s / (bare_s * wanted),
        loss_difference=float(((ours - theirs).abs() / theirs).max()),
        pairs=len(pairs),
        chunk=chunk,
    )


def write_store(folder: Path, songs: int) -> Path:
    """Songs of the micro world as latents."""
    source = write_world(folder / "songs", songs, 7)
    Preprocess()(source, folder / "store", partial(load_autoencoder, "micro_base"))
    return folder / "store"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one experiment."""
    parser = bench_parser("overhead", __doc__, READING)
    parser.add_argument("--experiment", default="micro_sft", help="of configs/experiment (default micro_sft)")
    parser.add_argument("--songs", type=int, default=64, help="to train on (default 64)")
    parser.add_argument("--chunks", type=int, default=30, help="chunks of each loop (default 30)")
    parser.add_argument("--chunk", type=int, default=5, help="steps in a chunk (default 5)")
    parser.add_argument("overrides", nargs="*", help="further arguments of train.py")
    run = Run.parse(parser, arguments)
    options = run.options
    config_name("experiment", options.experiment)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), options.songs)
        arguments = [f"experiment={options.experiment}", *options.overrides]
        result = measure(store, Path(folder) / "run", arguments, options.chunks, options.chunk)
    for name, value in asdict(result).items():
        print(f"{name:<24}{value:.5g}")
    run.write(machine(PACKAGES), "medians over chunks, without the first", **asdict(result))


if __name__ == "__main__":
    main()
