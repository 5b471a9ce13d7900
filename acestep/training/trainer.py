"""Lightning's Trainer as this project uses it: one long epoch, counted in steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn

from acestep.files import atomic
from acestep.training.activation_checkpointing import Recompute, recompute
from acestep.training.sharding import Sharded

COMPILER = {"triton.mix_order_reduction": False}
"""Where that is on, torch 2.10 to 2.13 lose gradients of modulations that are parts of one table (pytorch#193061)."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Hardware and length of a run.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ``mps``.
        devices: how many of each machine's, or ``auto`` for all.
        nodes: machines.
        strategy: ``auto``, ``ddp``, ``fsdp2`` (parameters, gradients and optimiser states spread over all processes),
            and what else Lightning knows by name.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed``.
        max_steps: steps of the optimiser, in all.
        accumulate: batches whose gradients make one step.
        gradient_clip: largest global norm of the gradient; ``None`` clips nothing.
        validate_every: batches between two validations.
        deterministic: refuse operations that a GPU does not repeat exactly.
        recompute: what the backward pass computes again instead of keeping it.
        compile: whether torch compiles the DiT's layers.
    """

    accelerator: str = "auto"
    devices: str = "1"
    nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    max_steps: int = 1000
    accumulate: int = 1
    gradient_clip: float | None = 1.0
    validate_every: int = 500
    deterministic: bool = False
    recompute: Recompute = Recompute.none
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("nodes", "max_steps", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)}: need at least 1")
        if self.devices != "auto" and not (self.devices.isdecimal() and int(self.devices) >= 1):
            raise ValueError(f"trainer.devices={self.devices}: need how many, at least 1, or auto for all")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"trainer.gradient_clip={self.gradient_clip:g}: need > 0, or null to clip nothing")

    def prepare(self, layers: nn.ModuleList) -> None:
        """Make ``layers`` recompute and compile as this says. Names of parameters and results stay."""
        recompute(layers, self.recompute)
        if self.compile:
            for layer in layers:
                layer.compile(options=COMPILER)

    def __call__(self, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> Trainer:
        """The trainer. ``callbacks`` report at their own pace, so that no step waits for a logger."""
        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices if self.devices == "auto" else int(self.devices),
            num_nodes=self.nodes,
            strategy=self._strategy(),
            precision=self.precision,
            max_steps=self.max_steps,
            accumulate_grad_batches=self.accumulate,
            gradient_clip_val=self.gradient_clip,
            val_check_interval=min(self.validate_every, self.max_steps * self.accumulate),
            check_val_every_n_epoch=None,
            deterministic=self.deterministic,
            plugins=[AtomicCheckpoints()],
            profiler=DataWait(),
            callbacks=list(callbacks),
            logger=list(loggers),
            log_every_n_steps=1,
            use_distributed_sampler=False,
            # FSDP2 gathers wrong parameters in torch's inference mode.
            inference_mode=self.strategy != "fsdp2",
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        )

    def _strategy(self) -> str | Strategy:
        if self.strategy != "fsdp2":
            return self.strategy
        if self.devices == "auto":
            raise ValueError("trainer.devices=auto: trainer.strategy=fsdp2 needs the number of each machine's devices")
        return Sharded(int(self.devices) * self.nodes)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints written aside and then renamed: a kill leaves the old ones whole, and no half of a new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``path``."""
        with atomic(path) as aside:
            torch.save(checkpoint, aside)


class DataWait(Profiler):
    """Seconds that training has waited for batches, and nothing else: the wait is hidden in Lightning's loop."""

    ACTION = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        """Lightning begins an action."""
        if action_name == self.ACTION:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Lightning ends an action."""
        if action_name == self.ACTION:
            self.seconds += time.perf_counter() - self._since

    def summary(self) -> str:
        """Nothing to print: ``Watch`` reports it."""
        return ""
