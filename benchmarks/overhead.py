"""What Lightning and Hydra cost: a run of ``train.py``'s parts beside a bare PyTorch loop, by turns in one process.

``python -m acestep bench overhead --json FILE``. Both start from the same weights and take the same songs, draws and
steps; their losses are compared. Times are processor time, so that other programs on the machine do not count.
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
from acestep.config.compose import composed
from acestep.config.jobs import build_job
from acestep.config.run import build, built_values, check
from acestep.data import EpochBatches
from acestep.data.preprocess import Preprocess
from acestep.pipeline.build import load_autoencoder
from acestep.synth import write_world
from acestep.training.datamodule import LatentData
from acestep.training.dit import latents
from acestep.training.fit import fit, load_pipeline, select_trained
from acestep.training.prompt_tasks import layouts
from acestep.training.seeding import derived_generator
from benchmarks.measure import Run, bench_parser, machine

PACKAGES = ("torch", "lightning", "hydra-core")
READING = """bare_s, ours_s: processor seconds a step. overhead: what the run takes more, as a share; with compose: with
what config files take once, spread over the experiment's steps. loss_difference: the largest, relative."""
"""What the lines say."""
QUIET = ["callbacks.sample.every=0", "callbacks.progress.refresh_rate=10"]


class Bare:
    """The least that trains: a loader, a forward and backward pass, clipping, an optimiser and its schedule.

    The experiment's objective, optimiser and schedule are its own parts; nothing here is Lightning's or Hydra's. With
    an average in the experiment, that is followed too.
    """

    def __init__(self, cfg: DictConfig, steps: int) -> None:
        self.seed, self.batch_size = cfg.seed, cfg.data.batch_size
        self.pipeline = load_pipeline(cfg.weights, build(cfg.model), cfg.network, cfg.seed)
        self.network = self.pipeline.network.train()
        select_trained(self.network, cfg.trainable, build(cfg.adapter) or None, cfg.seed)
        self.trained = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        self.objective, self.clip = build(cfg.objective), cfg.trainer.gradient_clip
        self.optimizer = build(cfg.optimizer)(list(self.trained.items()))
        rate = build(cfg.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate(step, steps))
        self.decay = cfg.callbacks.ema.decay if cfg.callbacks.ema else None
        self.average = [value.detach().clone() for value in self.trained.values()] if self.decay else []
        self.step, self.losses = 0, []
        data = LatentData(build(cfg.data), cfg.seed)
        order = EpochBatches(len(data.training), self.batch_size, seed=cfg.seed)
        self.batches = _endless(DataLoader(data.training, batch_sampler=order, collate_fn=data.collate))

    def __call__(self, steps: int) -> None:
        """Make some steps."""
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
        positions = range(self.step * self.batch_size, self.step * self.batch_size + len(batch))
        draws = [[derived_generator(self.seed, name, p) for p in positions] for name in ("posterior", "training")]
        conditioner = self.pipeline.conditioner
        with torch.no_grad():
            inputs = conditioner.encode(batch.songs, batch.frames, layouts(batch, conditioner.silence))
            conditions = self.network.condition(inputs, conditioner.silence)
        null = self.network.null(conditions)
        return self.objective(self.network.velocity, latents(batch, draws[0]), conditions, null, draws[1]).mean


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


class Turns(Callback):
    """Between two chunks of the run's steps, lets the bare loop make as many; keeps both times."""

    def __init__(self, bare: Bare, chunk: int) -> None:
        self.bare, self.chunk = bare, chunk
        self.pairs: list[tuple[float, float]] = []
        self.losses: list[Tensor] = []
        self._since: float | None = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """The chunk that ends here is the run's; the next is the bare loop's, of the same songs."""
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
        """Keep what the step's loss was made of, for the comparison afterwards."""
        self.losses.append((outputs["per_song"] * batch.frame_mask.sum(1)).sum() / batch.frame_mask.sum())


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Processor seconds a step, and what the run takes beyond the bare loop, as shares of the latter.

    Attributes:
        bare_s: a step of the bare loop, the median over chunks.
        ours_s: a step of the run.
        overhead: median over pairs of chunks of ``ours / bare - 1``.
        compose_s: once, to compose and check the config.
        overhead_with_compose: with that spread over the experiment's own number of steps.
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
    """Train as ``overrides`` of ``train.py`` say, for ``chunks`` and one more to warm up; the bare loop in between."""
    steps = (chunks + 2) * chunk
    started = process_time()
    cfg = composed("train", [f"data.path={store}", f"run.dir={folder}", *QUIET, *overrides])
    check(cfg)
    compose_s, wanted = process_time() - started, cfg.trainer.max_steps
    cfg.trainer.max_steps = cfg.trainer.validate_every = steps
    job, bare = build_job(cfg), Bare(cfg, steps)
    turns = Turns(bare, chunk)
    trainer = build(cfg.trainer)([*built_values(cfg.callbacks), turns], built_values(cfg.logger))
    fit(trainer, job.module, job.data, None, folder / "checkpoints" / "last.ckpt")
    theirs, ours = torch.stack(bare.losses), torch.stack(turns.losses[: len(bare.losses)])
    pairs = turns.pairs[1:]  # the first warms up
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
    parser.add_argument("--chunks", type=int, default=30, help="turns of each loop (default 30)")
    parser.add_argument("--chunk", type=int, default=5, help="steps in a turn (default 5)")
    parser.add_argument("overrides", nargs="*", help="further arguments of train.py")
    run = Run.of(parser, arguments)
    options = run.options
    config_name("experiment", options.experiment)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), options.songs)
        arguments = [f"experiment={options.experiment}", *options.overrides]
        found = measure(store, Path(folder) / "run", arguments, options.chunks, options.chunk)
    for name, value in asdict(found).items():
        print(f"{name:<24}{value:.5g}")
    run.write(machine(PACKAGES), "medians over turns, without the first", **asdict(found))


if __name__ == "__main__":
    main()
