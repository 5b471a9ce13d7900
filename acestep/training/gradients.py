"""Gradient averaging over values instead of batches, clipping, and skipping of steps with non-finite gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

LOSS_SCALE = 2.0**16
"""Summed losses are divided by it before the backward pass, to stay in fp16's range; a power of two, and so exact."""

MAX_SKIPPED_STEPS = 20
"""Steps in a row with a non-finite gradient after which training fails."""


class Gradients:
    """A step's loss is the sum of all errors over the number of all values, on all ranks and accumulated batches.

    Each batch backpropagates its sum; the number of values is only known at the end of the step, when the gradient is
    divided by it. A long song or a large batch thus counts by its frames, whichever batch it is in.

    Attributes:
        norm: global norm of the last step's gradient, before clipping.
        skipped: steps of the run that were skipped because of a non-finite gradient.
    """

    def __init__(self) -> None:
        self.norm: Float[Tensor, ""] = torch.tensor(0.0)
        self.skipped = 0
        self._in_a_row = 0
        self._values: Float[Tensor, ""] | None = None

    def backward_loss(self, total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The scaled sum to backpropagate for a batch of ``count`` values."""
        self._values = count if self._values is None else self._values + count
        return total / LOSS_SCALE

    def average_and_clip(self, parameters: Iterable[nn.Parameter], trainer: Trainer, clip: float | None) -> None:
        """Divide the gradients by the step's number of values and clip their norm; drop all if one is not finite."""
        trained = [parameter for parameter in parameters if parameter.grad is not None]
        assert self._values is not None
        # A copy, since it is summed in place, and callbacks read the batch's own count.
        values = trainer.strategy.reduce(self._values.clone(), reduce_op="sum")
        self._values = None
        # Lightning has divided by the batches of a step, and its strategies by the ranks.
        factor = LOSS_SCALE * trainer.world_size * trainer.accumulate_grad_batches / float(values)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self.norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm) * factor
        if self.norm.isfinite():
            self._in_a_row = 0
            if clip:
                torch._foreach_mul_(gradients, factor * torch.clamp(clip / (self.norm + 1e-6), max=1.0))
            else:
                torch._foreach_mul_(gradients, factor)
            return
        for parameter in trained:
            parameter.grad = None  # every optimiser passes it over, moments and weight decay included
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == MAX_SKIPPED_STEPS:
            raise ValueError(
                f"optimizer: the gradient was not finite in {MAX_SKIPPED_STEPS} steps in a row; lower optimizer.lr, or "
                "use trainer.precision=bf16-mixed or 32-true"
            )
