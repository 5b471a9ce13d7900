"""SIGTERM, which schedulers send before they take a machine away, and Ctrl-C: save after the current step, and stop."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

STOPPED = "stopped.ckpt"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """Training was stopped by a signal; its checkpoint is written."""


class StopOnSignal(Callback):
    """Handles SIGTERM and SIGINT during training; every rank stops after the same step, whichever received one.

    A second Ctrl-C does not wait for the step.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._received = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Replace Lightning's handler, which would stop without a checkpoint."""
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if (index + 1) % trainer.accumulate_grad_batches or trainer.global_step >= trainer.max_steps:
            return
        stop = self._received
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            trainer.save_checkpoint(self.path)
            raise StoppedError

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)
