"""Lightning's Trainer as this project uses it: one long epoch, counted in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Hardware and length of a run.

    Args:
        accelerator: ``auto``, ``cpu``, ``gpu``, ``mps``.
        devices: how many of each machine's, or ``auto`` for all.
        nodes: machines.
        strategy: ``auto``, ``ddp``, and what else Lightning knows by name.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed``.
        max_steps: steps of the optimiser, in all.
        accumulate: batches whose gradients make one step.
        gradient_clip: largest global norm of the gradient; ``None`` clips nothing.
        validate_every: batches between two validations.
        deterministic: refuse operations that a GPU does not repeat exactly.
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

    def __post_init__(self) -> None:
        for name in ("nodes", "max_steps", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)}: need at least 1")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"trainer.gradient_clip={self.gradient_clip:g}: need > 0, or null to clip nothing")

    def __call__(self, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> Trainer:
        """The trainer. ``callbacks`` report at their own pace, so that no step waits for a logger."""
        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices if self.devices == "auto" else int(self.devices),
            num_nodes=self.nodes,
            strategy=self.strategy,
            precision=self.precision,
            max_steps=self.max_steps,
            accumulate_grad_batches=self.accumulate,
            gradient_clip_val=self.gradient_clip,
            val_check_interval=min(self.validate_every, self.max_steps * self.accumulate),
            check_val_every_n_epoch=None,
            deterministic=self.deterministic,
            callbacks=list(callbacks),
            logger=list(loggers),
            log_every_n_steps=1,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        )
