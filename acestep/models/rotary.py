"""Positions as rotations of pairs of channels (Su et al. 2021, arXiv 2104.09864), in the half-split layout.

Shapes: B batch, L positions, N heads, D width of one head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine (L, D) of every position's angles."""


def rotary_table(length: int, width: int, theta: float, like: Tensor) -> Rotary:
    """Cosine and sine (length, width) of every position's angles, computed in float32, in ``like``'s dtype."""
    pairs = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, 1 / theta ** (pairs / width)).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Float[Tensor, "b l n d"], rotary: Rotary) -> Float[Tensor, "b l n d"]:
    """Turn channel pairs (i, i + D/2) by their position's angle (half-split layout)."""
    return cast(Tensor, Rotation.apply(x, *rotary))


def weighted(rotary: Rotary, weight: Float[Tensor, " d"]) -> Rotary:
    """The table that turns ``x`` as ``rotary`` turns ``x * weight``."""
    cos, sin = rotary
    return cos * weight, sin * weight.roll(len(weight) // 2)


def turned(x: Float[Tensor, "b l n d"], rotary: Rotary, out: Tensor | None = None) -> Float[Tensor, "b l n d"]:
    """``rotate`` without a gradient, into ``out`` where that is given."""
    cos, sin = (table.unsqueeze(1) for table in rotary)  # (L, 1, D)
    half = x.shape[-1] // 2
    out = torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class Rotation(torch.autograd.Function):
    """``rotate`` with its gradient, which is turned the other way: less is written than torch would by itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turned by the angles of which these are cosine and sine."""
        return turned(x, (cos, sin))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep the table."""
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of ``x``; the table's have none."""
        cos, sin = ctx.saved_tensors
        return cast(Tensor, Rotation.apply(gradients[0], cos, -sin)), None, None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor, *_: None) -> Tensor:
        """What a change of ``x`` makes of it."""
        return cast(Tensor, Rotation.apply(of_x, *ctx.saved_tensors))
