"""SIGTERM, as schedulers send it before they take a machine away, and Ctrl-C: save at the next whole step, and stop."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

STOPPED = "stopped.ckpt"
TAKEN = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """Training ended early, at a whole step, with all it needs to go on on disk."""


class StopOnSignal(Callback):
    """Takes SIGTERM and SIGINT while training lasts; every rank stops at the same step, whichever of them got it.

    A second Ctrl-C does not wait for the step.

    Args:
        path: where the checkpoint goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._received = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """From here on, in place of Lightning's handler, which would stop without a checkpoint."""
        self._before = {number: signal.signal(number, self._receive) for number in TAKEN}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Between two steps, stop if any rank was told to."""
        if (index + 1) % trainer.accumulate_grad_batches or trainer.global_step >= trainer.max_steps:
            return
        wanted = self._received
        if trainer.world_size > 1:
            wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if wanted:
            trainer.save_checkpoint(self.path)
            raise StoppedError

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Leave the signal as it was found."""
        self._restore()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Also after an error."""
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True

    def _restore(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, before)
