"""The parts every transformer stack of the model is made of. Knows no diffusion, no text and no audio.

Shapes: B batch, L positions, K key positions, H width, N query heads, D width of one head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acestep.models.attention import FULL, SLIDING, Mask, attend, attention_masks
from acestep.models.rotary import Rotary, rotary_table, rotate


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Sizes of one stack of layers, under the published names.

    ``layer_types[i]`` says what layer i sees: everything (``full_attention``) or the positions at most
    ``sliding_window`` away, both ends included (``sliding_attention``).
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]
    sliding_window: int | None = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    attention_bias: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads}: must divide "
                f"num_attention_heads={self.num_attention_heads}; each key head serves a whole group of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: must be even; rotary embedding turns pairs of channels")
        if self.sliding_window is not None and self.sliding_window < 0:
            raise ValueError(f"sliding_window={self.sliding_window}: need at least 0 positions")
        for kind in self.layer_types:
            if kind not in (SLIDING, FULL):
                raise ValueError(f"layer_types has {kind!r}: use {SLIDING!r} or {FULL!r}")


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least; the weight is applied in the input's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
        """``x`` with mean square 1, times the weight."""
        return self.unit(x) * self.weight

    def unit(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
        """``x`` with mean square 1."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.rms_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype)
        return cast(Tensor, Unit.apply(x, self.eps)[0])  # torch has no kernel of its own for it there

    def factor(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b 1"]:
        """What makes ``x``'s mean square 1."""
        return _factor(x, self.eps)


class Unit(torch.autograd.Function):
    """``RMSNorm.unit`` and its factor, with their gradient in half the turns that torch would take by itself.

    The factor is an output so that what is kept for the gradient has gradients too. Forward derivatives of forward ones
    are wrong, as of any function that torch 2.11 is told the derivative of: take one of both backward.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """``x`` with mean square 1, and what makes it so."""
        factor = _factor(x, eps)
        return (x * factor).to(x.dtype), factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        """Keep what came out."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, of_y: Tensor | None, of_factor: Tensor | None) -> tuple[Tensor | None, None]:
        """The gradient of ``x``: what of ``y``'s points along ``y`` is taken out, since the factor undoes it."""
        y, factor = ctx.saved_tensors
        wide = y.to(factor.dtype)
        along = 0 if of_y is None else (y * of_y.to(factor.dtype)).sum(-1, keepdim=True)
        if of_factor is not None:
            along = along + of_factor * factor
        along = along / -y.shape[-1]
        gradient = wide * along if of_y is None else torch.addcmul(of_y.to(factor.dtype), wide, along)
        return (gradient * factor).to(y.dtype), None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor, _: None) -> tuple[Tensor, Tensor]:
        """What a change of ``x`` makes of both."""
        y, factor = ctx.saved_tensors
        wide, change = y.to(factor.dtype), of_x.to(factor.dtype) * factor
        along = (wide * change).mean(-1, keepdim=True)
        return torch.addcmul(change, wide, -along).to(y.dtype), -factor * along


def _factor(x: Float[Tensor, "*b h"], eps: float) -> Float[Tensor, "*b 1"]:
    """What makes ``x``'s mean square 1; no square of ``x`` is written for it and read again."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return (norm.square() / x.shape[-1] + eps).rsqrt()


class SwiGLU(nn.Module):
    """The gated feed-forward block: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
        """Each position on its own."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Bidirectional grouped-query attention with a norm on every query and key head."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        width, head, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.head_dim = head
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=bias)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(
        self,
        x: Float[Tensor, "b l h"],
        source: Float[Tensor, "b k h"] | None = None,
        rotary: Rotary | None = None,
        mask: Mask = None,
    ) -> Float[Tensor, "b l h"]:
        """Attend from ``x`` to ``source``, or to ``x`` itself.

        Args:
            x: where queries come from.
            source: where keys and values come from; ``None`` is ``x``.
            rotary: positions of queries and keys, see ``rotary_table``; ``None`` leaves them unordered.
            mask: what is seen of them, see ``attention_masks``.
        """
        q = self.queries(x, rotary)
        return self.o_proj(attend(q, *self.keys_values(x if source is None else source, rotary), mask))

    def queries(self, x: Float[Tensor, "b l h"], rotary: Rotary | None = None) -> Float[Tensor, "b l n d"]:
        """What each position of ``x`` asks for."""
        q = self.q_norm(self.q_proj(x).unflatten(-1, (-1, self.head_dim)))
        return q if rotary is None else rotate(q, rotary)

    def keys_values(
        self, source: Float[Tensor, "b k h"], rotary: Rotary | None = None
    ) -> tuple[Float[Tensor, "b k g d"], Float[Tensor, "b k g d"]]:
        """What ``source`` offers: one pair of heads for each group of query heads."""
        k = self.k_norm(self.k_proj(source).unflatten(-1, (-1, self.head_dim)))
        v = self.v_proj(source).unflatten(-1, (-1, self.head_dim))
        return k if rotary is None else rotate(k, rotary), v


class EncoderLayer(nn.Module):
    """A pre-norm bidirectional transformer layer; lyric, timbre, tokenizer and detokenizer stacks share it."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Float[Tensor, "b l h"], rotary: Rotary, mask: Mask) -> Float[Tensor, "b l h"]:
        """Attend, then transform each position."""
        x = x + self.self_attn(self.input_layernorm(x), rotary=rotary, mask=mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    """Embed, run ``depth`` encoder layers, normalise. Subclasses say what goes in and what comes out."""

    def __init__(self, config: StackConfig, features: int, depth: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Linear(features, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def encode(self, x: Float[Tensor, "b l h"], valid: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l h"]:
        """Layers and final norm over embedded positions; keys that are not ``valid`` are hidden."""
        config = self.config
        rotary = rotary_table(x.shape[1], config.head_dim, config.rope_theta, x)
        masks = attention_masks(x.shape[1], config.sliding_window, valid, x)
        for layer, kind in zip(self.layers, config.layer_types, strict=False):
            x = layer(x, rotary, masks[kind])
        return self.norm(x)
