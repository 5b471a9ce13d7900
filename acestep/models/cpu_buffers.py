"""Reused buffers for the large intermediate tensors of inference on a CPU."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from acestep.models.layers import RMSNorm, normed_heads
from acestep.models.rotary import Rotary, rotate_forward, scale_rotary


class BufferPool:
    """Named buffers that every layer of a network writes its intermediate tensors to, on a CPU.

    Torch allocates and frees large CPU tensors through the operating system, and page faults on the fresh memory cost
    more than all norms together; GPU memory is cached by torch. Off CPU, under hooks, autocast or the compiler, the
    methods return new tensors: a tensor that a hook has received must not be overwritten later.

    Attributes:
        hooked: whether module inputs and outputs must not be overwritten, see :func:`has_hooks`.
    """

    def __init__(self) -> None:
        self.hooked = False
        self._buffers: dict[str, Tensor] = {}

    def linear(self, linear: nn.Linear, x: Float[Tensor, "n s h"], name: str) -> Float[Tensor, "n s i"]:
        """``linear(x)``, valid until the next call with that ``name``."""
        plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter  # neither adapted nor quantized
        if not plain or linear.bias is not None or not self._enabled(x):
            return linear(x)
        rows, width = x.shape[0] * x.shape[1], linear.out_features
        out = self.buffer(name, x, rows, width)
        return torch.mm(x.reshape(rows, -1), linear.weight.t(), out=out).view(*x.shape[:2], width)

    def normalize(self, norm: RMSNorm, x: Float[Tensor, "n s h"]) -> Float[Tensor, "n s h"]:
        """``norm.normalize(x)``, valid until the next call; the caller may overwrite it."""
        if not self._enabled(x):
            return norm.normalize(x)
        return torch.mul(x, norm.inverse_rms(x), out=self.buffer("normalized", x, *x.shape))

    def heads(
        self, linear: nn.Linear, norm: RMSNorm, x: Float[Tensor, "n s h"], rotary: Rotary | None, name: str
    ) -> Float[Tensor, "n s g d"]:
        """:func:`normed_heads` of ``x``, valid until the next call with that ``name``."""
        if not self._enabled(x):
            return normed_heads(linear, norm, x, rotary)
        heads = self.linear(linear, x, name).unflatten(-1, (-1, norm.weight.shape[0]))
        if rotary is None:
            return norm(heads)
        out = self.buffer(f"rotated {name}", heads, *heads.shape)
        return rotate_forward(heads, scale_rotary(rotary, norm.weight), out=out).mul_(norm.inverse_rms(heads))

    def buffer(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised memory of that ``shape``, in ``like``'s dtype and device."""
        kept, size = self._buffers.get(name), math.prod(shape)
        if kept is None or kept.numel() < size or kept.dtype != like.dtype:
            with torch.inference_mode(False):  # an inference tensor could not be written to outside inference mode
                kept = self._buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return kept[:size].view(shape)

    def _enabled(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or self.hooked or torch.compiler.is_compiling():
            return False
        return not torch.is_autocast_enabled("cpu")


def has_hooks(network: nn.Module) -> bool:
    """Whether a hook, or a ``forward`` that replaces a module's own, receives tensors of ``network``."""
    return global_hooks._has_any_global_hook() or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
        for module in network.modules()
    )
