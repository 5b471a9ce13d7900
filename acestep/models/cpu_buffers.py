"""Where a generation on a processor writes what is large and soon forgotten."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all

from acestep.models.layers import RMSNorm
from acestep.models.rotary import Rotary, rotate, turned, weighted


class Scratch:
    """Memory that layer after layer of a network writes to what is large and soon forgotten.

    Torch asks the system for it and hands it back every time, and a processor then fills it page by page, far from its
    cache: with more effort than all norms together. An accelerator's is kept by torch. A network that somebody watches
    is left to torch too, for what a hook was shown must stay what it was; and so is one under autocast.

    Attributes:
        watched: nothing that a module took or gave may be written over, see :func:`is_watched`.
    """

    def __init__(self) -> None:
        self.watched = False
        self._kept: dict[str, Tensor] = {}

    def of(self, linear: nn.Linear, x: Float[Tensor, "n s h"], name: str) -> Float[Tensor, "n s i"]:
        """``linear(x)``, to be used before the next of that name is asked for."""
        plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter  # else adapted, or quantised
        if not plain or linear.bias is not None or not self._serves(x):
            return linear(x)
        rows, width = x.shape[0] * x.shape[1], linear.out_features
        out = self.room(name, x, rows, width)
        return torch.mm(x.reshape(rows, -1), linear.weight.t(), out=out).view(*x.shape[:2], width)

    def unit(self, norm: RMSNorm, x: Float[Tensor, "n s h"]) -> Float[Tensor, "n s h"]:
        """``norm.unit(x)``, to be used before the next one is asked for, or written over."""
        if not self._serves(x):
            return norm.unit(x)
        return torch.mul(x, norm.factor(x), out=self.room("unit", x, *x.shape))

    def heads(
        self, linear: nn.Linear, norm: RMSNorm, x: Float[Tensor, "n s h"], rotary: Rotary, name: str
    ) -> Float[Tensor, "n s g d"]:
        """The heads of ``linear(x)``, normalised and turned; to be used before the next of that name is asked for."""
        heads = self.of(linear, x, name).unflatten(-1, (-1, norm.weight.shape[0]))
        if not self._serves(x):
            return rotate(norm(heads), rotary)
        room = self.room(f"turned {name}", heads, *heads.shape)
        return turned(heads, weighted(rotary, norm.weight), out=room).mul_(norm.factor(heads))

    def _serves(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or self.watched or torch.compiler.is_compiling():
            return False
        return not torch.is_autocast_enabled("cpu")

    def room(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory of that ``shape`` and of ``like``'s kind, with anything in it."""
        kept, size = self._kept.get(name), math.prod(shape)
        if kept is None or kept.numel() < size or kept.dtype != like.dtype:
            with torch.inference_mode(False):  # else none but inference could use it again
                kept = self._kept[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return kept[:size].view(shape)


def is_watched(network: nn.Module) -> bool:
    """Whether a hook, or a ``forward`` put in the place of the module's own, is shown what passes."""
    return hooks_of_all._has_any_global_hook() or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in network.modules()
    )
