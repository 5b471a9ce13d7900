"""Settings of Lightning's Trainer: a run is one long epoch, counted in optimiser steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn

from acestep.training.activation_checkpointing import Recompute, checkpoint_activations
from acestep.training.checkpoint import AtomicCheckpointIO, FSDP2Strategy

COMPILE_OPTIONS = {"triton.mix_order_reduction": False}
"""With it, torch 2.10 to 2.13 lose gradients of modulations that are slices of one table (pytorch#193061)."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Hardware and length of a run.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ``mps``.
        devices: number of devices of each machine, or ``auto`` for all.
        nodes: number of machines.
        strategy: ``auto``, ``ddp``, ``fsdp2`` (parameters, gradients and optimiser states sharded over all processes),
            or another name that Lightning knows.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed``.
        max_steps: optimiser steps of the run.
        accumulate: batches per optimiser step, whose gradients are accumulated.
        gradient_clip: largest global norm of the gradient; ``None`` clips nothing.
        validate_every: batches between two validations.
        deterministic: raise an error at operations that are not deterministic on a GPU.
        recompute: activations that the backward pass recomputes instead of keeping them (activation checkpointing).
        compile: compile the DiT's layers with torch.compile.
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
        """Apply activation checkpointing and torch.compile to ``layers``; parameter names and results stay."""
        checkpoint_activations(layers, self.recompute)
        if self.compile:
            for layer in layers:
                layer.compile(options=COMPILE_OPTIONS)

    def __call__(self, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> Trainer:
        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices if self.devices == "auto" else int(self.devices),
            num_nodes=self.nodes,
            strategy=self._strategy(),
            precision=cast("_PRECISION_INPUT", self.precision),  # Lightning checks it
            max_steps=self.max_steps,
            accumulate_grad_batches=self.accumulate,
            gradient_clip_val=self.gradient_clip,
            val_check_interval=min(self.validate_every, self.max_steps * self.accumulate),
            check_val_every_n_epoch=None,
            deterministic=self.deterministic,
            plugins=[AtomicCheckpointIO()],
            profiler=DataWaitProfiler(),
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
        return FSDP2Strategy(int(self.devices) * self.nodes)


class DataWaitProfiler(Profiler):
    """Measures only the seconds that the training loop waits for batches, which happens inside Lightning's loop."""

    ACTION = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        if action_name == self.ACTION:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == self.ACTION:
            self.seconds += time.perf_counter() - self._since

    def summary(self) -> str:
        """Nothing to print: ``TrainingMonitor`` logs ``seconds``."""
        return ""
