"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split layout.

Shapes: B batch, L positions, N heads, D head width.
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
    """Rotate channel pairs (i, i + D/2) by their position's angle."""
    return cast(Tensor, Rotation.apply(x, *rotary))


def scale_rotary(rotary: Rotary, weight: Float[Tensor, " d"]) -> Rotary:
    """The table with which rotating ``x`` equals rotating ``x * weight`` by ``rotary``."""
    cos, sin = rotary
    return cos * weight, sin * weight.roll(len(weight) // 2)


def rotate_forward(x: Float[Tensor, "b l n d"], rotary: Rotary, out: Tensor | None = None) -> Float[Tensor, "b l n d"]:
    """:func:`rotate` without autograd, into ``out`` if given."""
    cos, sin = (table.unsqueeze(1) for table in rotary)  # (L, 1, D)
    half = x.shape[-1] // 2
    out = torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class Rotation(torch.autograd.Function):
    """:func:`rotate` with its gradient, the inverse rotation: fewer intermediate tensors than autograd's own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate_forward(x, (cos, sin))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of ``x``; cosine and sine are constants."""
        cos, sin = ctx.saved_tensors
        return cast(Tensor, Rotation.apply(gradients[0], cos, -sin)), None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, *_: None) -> Tensor:
        return cast(Tensor, Rotation.apply(x_tangent, *ctx.saved_tensors))
