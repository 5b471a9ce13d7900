"""A tiny run built from objects, as ``train.py`` builds it from a config: in this process, or in some of its own."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from tiny import OOBLECK
from torch.distributed.tensor import DTensor

from acestep.adapters import LoRA
from acestep.flow import ConditionDropout, FlowMatching
from acestep.models.acestep import AceStepConfig
from acestep.models.discriminators import DiscriminatorConfig
from acestep.planner.init import PretrainedInit, ScratchInit
from acestep.training.audio_datamodule import AudioConfig
from acestep.training.callbacks import EMA, Checkpoints, TrainingMonitor
from acestep.training.checkpoint import newest_checkpoint
from acestep.training.datamodule import DataConfig, LatentDataModule, ResumableDataModule
from acestep.training.dit import DiTModule
from acestep.training.fit import NetworkInit, fit, load_pipeline, set_trainable
from acestep.training.loggers import TableLogger
from acestep.training.lr_schedules import WarmupCosine
from acestep.training.module import Optimization, TrainingModule
from acestep.training.optim import AdamW
from acestep.training.planner import ExampleMix
from acestep.training.sharding import gather_parameters
from acestep.training.tasks import AutoencoderTask, PlannerTask, TokenizerTask, TrainJob, TrainSpec
from acestep.training.trainer import TrainerConfig
from acestep.weights.open import open_checkpoint

ALL = r"^decoder\.|^encoder\.|^null_condition_emb$"
FINAL = "final.pt"
GRADIENT = "gradient.pt"
OPTIMIZATION = Optimization(optimizer=AdamW(lr=1e-2), lr=WarmupCosine(warmup=2))
Train = Callable[..., Path]
"""Runs ``train.py`` in a folder, with what is given beside; returns the folder."""


def train(
    folder: Path,
    places: tuple[Path, Path],
    *,
    task: Task | DiT | None = None,
    steps: int = 6,
    adapter: LoRA | None = None,
    callbacks: Sequence[Callback] = (),
    ema: bool = False,
    trainer: dict[str, Any] | None = None,
    **data: Any,
) -> TrainingModule:
    """Train in ``folder``, from its newest checkpoint where it has one; returns the module afterwards.

    ``places`` are the checkpoint and the songs to train with; without a ``task``, a DiT trains, or its ``adapter``.
    """
    torch.manual_seed(torch.seed())  # nothing may hang on the ambient seed
    settings = TrainerConfig(**{"accelerator": "cpu", "max_steps": steps, "validate_every": 3} | (trainer or {}))
    wanted = {"path": str(places[1]), "batch_size": 2, "held_out": 2} | data
    task = task or DiT(adapter)
    module, songs = task(places[0], settings, wanted)
    periodic = Checkpoints(dirpath=folder / "checkpoints", filename="{step}", every_n_train_steps=2)
    watch = TrainingMonitor(every=1)
    made = settings([periodic, watch, *([EMA(decay=0.9)] if ema else []), *callbacks], [TableLogger(str(folder))])
    last = folder / "checkpoints" / "last.ckpt"
    module.finished = fit(made, module, songs, newest_checkpoint(folder), last)
    return module


@dataclass(frozen=True)
class DiT:
    """The DiT's training, metrics closely."""

    adapter: LoRA | None = None
    trainable: str = ALL

    def __call__(self, tiny: Path, settings: TrainerConfig, data: dict[str, Any]) -> tuple[DiTModule, LatentDataModule]:
        pipeline = load_pipeline(str(tiny), _config(tiny), NetworkInit.pretrained, seed=1)
        set_trainable(pipeline.network, self.trainable, self.adapter, seed=1)
        settings.prepare(pipeline.network.decoder.layers)
        objective = FlowMatching(dropout=ConditionDropout(rate=0.3))
        module = DiTModule(pipeline, objective, OPTIMIZATION, seed=1, validation_times=2)
        return module, LatentDataModule(DataConfig(**data), seed=1)


def _config(tiny: Path) -> AceStepConfig:
    return AceStepConfig.from_dict(open_checkpoint(tiny).network_config)


@dataclass(frozen=True)
class Task:
    """One of the other trainings, as ``train.py`` builds it of its parts."""

    task: Callable[[TrainSpec], TrainJob]
    trainable: str = "."
    start: NetworkInit = NetworkInit.pretrained
    adapter: LoRA | None = None
    data: Callable[..., Any] = DataConfig
    rate: float = 1e-2

    def __call__(
        self, tiny: Path, settings: TrainerConfig, data: dict[str, Any]
    ) -> tuple[TrainingModule, ResumableDataModule]:
        parts = TrainSpec(
            weights=str(tiny),
            start=self.start,
            model=_config(tiny),
            trainable=self.trainable,
            adapter=self.adapter,
            objective=FlowMatching(),
            data=self.data(**data),
            optimization=Optimization(optimizer=AdamW(lr=self.rate), lr=WarmupCosine(warmup=2)),
            trainer=settings,
            seed=1,
        )
        job = self.task(parts)
        return job.module, job.data


SMALL_LANGUAGE = ScratchInit(
    vocabulary=300,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
EXAMPLES = ExampleMix(unconditional=0.2, captioning=0.3)
PLANNER = Task(PlannerTask(language=SMALL_LANGUAGE, example_mix=EXAMPLES, validation_plans=2))
TOKENIZER = Task(TokenizerTask(), trainable=r"^(de)?tokenizer\.")
DISCRIMINATOR = DiscriminatorConfig(channels=4, sizes=(32, 16))
AUTOENCODER = Task(
    AutoencoderTask(oobleck=OOBLECK, discriminator=DISCRIMINATOR),
    start=NetworkInit.scratch,
    data=partial(AudioConfig, frames=8),
    rate=1e-4,
)


def adapted(language: Path, dropout: float = 0.0) -> Task:
    """LoRA on the language model in ``language``."""
    task = PlannerTask(language=PretrainedInit(path=str(language)), example_mix=EXAMPLES, validation_plans=2)
    return Task(task, adapter=LoRA(rank=2, alpha=4, dropout=dropout))


class DieAfter(Callback):
    """Kills its own process, at once, somewhere after some more steps."""

    def __init__(self, steps: int, seed: int) -> None:
        self.steps, self.random = steps, random.Random(seed)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        self.at = trainer.global_step + self.steps

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.at:
            self.at = -1
            signal.setitimer(signal.ITIMER_REAL, self.random.uniform(1e-4, 0.1))


class TermAt(Callback):
    """Sends SIGTERM to its own process in the midst of the step after ``step``, on one rank alone."""

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step, self.rank = step, rank

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


class KeepGradient(Callback):
    """Keeps what the first step moved the weights by, whole, beside the run's metrics."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step != 1 or (index + 1) % trainer.accumulate_grad_batches:
            return
        gradients = {name: value.grad for name, value in module.trained_parameters().items() if value.grad is not None}
        whole = {n: grad.full_tensor() if isinstance(grad, DTensor) else grad for n, grad in gradients.items()}
        if trainer.is_global_zero:
            torch.save({name: grad.clone() for name, grad in whole.items()}, trainer.logger.path.with_name(GRADIENT))


def job(folder: Path, places: tuple[Path, Path], environment: dict[str, str], settings: dict[str, Any]) -> None:
    """``train`` in a process of its own, which leaves the trained weights in the folder."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for loader processes; this one cannot ask the server
    module = train(folder, places, **settings)
    gather_parameters(module.network)
    if environment.get("RANK", "0") == "0" and module.finished:
        torch.save({name: value.detach() for name, value in module.trained_parameters().items()}, folder / FINAL)


def start(processes: int, *arguments: Any, **settings: Any) -> list[Any]:
    """``processes`` of one run, as torchrun would start them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": processes}
        environment |= {"LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment |= {"TORCHELASTIC_RUN_ID": "test"}
        named = {name: str(value) for name, value in environment.items()} if processes > 1 else {}
        started.append(context.Process(target=job, args=(*arguments, named, settings)))
        started[-1].start()
    return started


def run(processes: int, *arguments: Any, **settings: Any) -> list[int]:
    """Start and wait; returns how the processes ended."""
    started = start(processes, *arguments, **settings)
    for process in started:
        process.join(900)  # a busy machine is slow, and no reason to fail
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in started]


def curve(folder: Path, name: str = "train/loss") -> dict[int, float]:
    """A metric by step."""
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == name}
