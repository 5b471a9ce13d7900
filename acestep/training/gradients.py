"""From summed to averaged gradients, their norm, and what is done where they are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from acestep.flow.objective import Loss

UNIT = 2.0**16
"""Batches hand on their summed errors in this unit, a power of two and so exact, to stay far from fp16's limits."""

PATIENCE = 20
"""Steps in a row without a finite gradient that a run survives."""


class Gradients:
    """A step's loss is the sum of all errors over the number of all values, on all ranks and accumulated batches.

    Each batch backpropagates its sum alone; the number is only known at the end of the step, and divided by then. A
    long song or a large batch thus counts by its frames, wherever it falls.

    Attributes:
        norm: global norm of the last step's gradient, before clipping.
        skipped: steps of the run that moved nothing, since the gradient was not finite.
    """

    def __init__(self) -> None:
        self.norm: Float[Tensor, ""] = torch.tensor(0.0)
        self.skipped = 0
        self._in_a_row = 0
        self._values: Float[Tensor, ""] | None = None

    def share(self, loss: Loss) -> Float[Tensor, ""]:
        """What a batch is to backpropagate."""
        self._values = loss.count if self._values is None else self._values + loss.count
        return loss.total / UNIT

    def finish(self, parameters: Iterable[nn.Parameter], trainer: Trainer, clip: float | None) -> None:
        """Average, measure and clip the gradients of a step; drop them all where one is not finite."""
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        assert self._values is not None
        # A copy, since it is summed in place: who watches counts the batch's own values.
        values = trainer.strategy.reduce(self._values.clone(), reduce_op="sum")
        self._values = None
        # Lightning has divided by the batches of a step, and its strategies by the ranks.
        factor = UNIT * trainer.world_size * trainer.accumulate_grad_batches / float(values)
        gradients = [parameter.grad for parameter in moved]
        self.norm = _norm(gradients) * factor
        if self.norm.isfinite():
            self._in_a_row = 0
            clipped = torch.clamp(clip / (self.norm + 1e-6), max=1.0) if clip else 1.0
            torch._foreach_mul_(gradients, factor * clipped)
            return
        for parameter in moved:
            parameter.grad = None  # which every optimiser passes over, moments and weight decay included
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == PATIENCE:
            raise ValueError(
                f"optimizer: the gradient was not finite in {PATIENCE} steps in a row; lower optimizer.lr, or use "
                "trainer.precision=bf16-mixed or 32-true"
            )


def _norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
