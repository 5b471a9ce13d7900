"""Building blocks shared by all transformer stacks: RMSNorm, SwiGLU, attention, encoder layers.

Shapes: B batch, L positions, K key positions, H width, N query heads, G key and value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acestep.models.attention import FULL, SLIDING, Mask, attention_masks, scaled_dot_product
from acestep.models.rotary import Rotary, rotary_table, rotate


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Sizes of one stack of layers, under the published names.

    ``layer_types[i]`` is layer i's self-attention: ``full_attention``, or ``sliding_attention`` to positions at most
    ``sliding_window`` away, inclusive.
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
                f"num_attention_heads={self.num_attention_heads}; each key head is shared by a group of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: must be even; rotary embedding rotates pairs of channels")
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
        return self.normalize(x) * self.weight

    def normalize(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b h"]:
        """``x`` with mean square 1, without the weight."""
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.rms_norm(x, x.shape[-1:], eps=self.eps).to(x.dtype)
        return cast(Tensor, RMSNormFunction.apply(x, self.eps)[0])  # torch has no fused CPU kernel

    def inverse_rms(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b 1"]:
        """``1 / sqrt(mean(x**2) + eps)``."""
        return _inverse_rms(x, self.eps)


class RMSNormFunction(torch.autograd.Function):
    """``RMSNorm.normalize`` and the inverse RMS, with a gradient in half the passes over memory of autograd's own.

    The inverse RMS is an output so that double backward can differentiate what is saved for backward. Forward-over-
    forward derivatives are wrong, as of every function with a ``jvp`` in torch 2.11: take one of the two backward.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        inverse_rms = _inverse_rms(x, eps)
        return (x * inverse_rms).to(x.dtype), inverse_rms

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_inverse_rms: Tensor | None) -> tuple[Tensor | None, None]:
        """The gradient of ``x``: that of ``y`` without its component along ``y``, times the inverse RMS."""
        y, inverse_rms = ctx.saved_tensors
        wide = y.to(inverse_rms.dtype)
        along = 0 if grad_y is None else (y * grad_y.to(inverse_rms.dtype)).sum(-1, keepdim=True)
        if grad_inverse_rms is not None:
            along = along + grad_inverse_rms * inverse_rms
        along = along / -y.shape[-1]
        gradient = wide * along if grad_y is None else torch.addcmul(grad_y.to(inverse_rms.dtype), wide, along)
        return (gradient * inverse_rms).to(y.dtype), None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, _: None) -> tuple[Tensor, Tensor]:
        y, inverse_rms = ctx.saved_tensors
        wide, change = y.to(inverse_rms.dtype), x_tangent.to(inverse_rms.dtype) * inverse_rms
        along = (wide * change).mean(-1, keepdim=True)
        return torch.addcmul(change, wide, -along).to(y.dtype), -inverse_rms * along


def _inverse_rms(x: Float[Tensor, "*b h"], eps: float) -> Float[Tensor, "*b 1"]:
    """From the vector norm, so that no square of ``x`` is written to memory."""
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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Bidirectional grouped-query attention with RMSNorm on every query and key head."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        width, head, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.head_dim = head
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
            x: input of the queries.
            source: input of keys and values; ``None`` is ``x``.
            rotary: rotary table of the positions; ``None`` for no position embedding.
            mask: see ``attention_masks``.
        """
        q = self.queries(x, rotary)
        k, v = self.keys_values(x if source is None else source, rotary)
        return self.o_proj(scaled_dot_product(q, k, v, mask))

    def queries(self, x: Float[Tensor, "b l h"], rotary: Rotary | None = None) -> Float[Tensor, "b l n d"]:
        return normed_heads(self.q_proj, self.q_norm, x, rotary)

    def keys_values(
        self, source: Float[Tensor, "b k h"], rotary: Rotary | None = None
    ) -> tuple[Float[Tensor, "b k g d"], Float[Tensor, "b k g d"]]:
        """Key and value heads of ``source``."""
        return normed_heads(self.k_proj, self.k_norm, source, rotary), self.value_heads(source)

    def value_heads(self, source: Float[Tensor, "b k h"]) -> Float[Tensor, "b k g d"]:
        return self.v_proj(source).unflatten(-1, (-1, self.head_dim))


def normed_heads(
    linear: nn.Module, norm: RMSNorm, x: Float[Tensor, "b l h"], rotary: Rotary | None = None
) -> Float[Tensor, "b l n d"]:
    """Query or key heads of ``x``: projected, normalised per head, and rotated if there is a table."""
    heads = norm(linear(x).unflatten(-1, (-1, norm.weight.shape[0])))
    return heads if rotary is None else rotate(heads, rotary)


class EncoderLayer(nn.Module):
    """A pre-norm bidirectional transformer layer; lyric, timbre, tokenizer and detokenizer stacks share it."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Float[Tensor, "b l h"], rotary: Rotary, mask: Mask) -> Float[Tensor, "b l h"]:
        x = x + self.self_attn(self.input_layernorm(x), rotary=rotary, mask=mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    """Embed, ``depth`` encoder layers, final norm. Subclasses define ``forward`` around :meth:`encode`."""

    def __init__(self, config: StackConfig, features: int, depth: int) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Linear(features, config.hidden_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(depth))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def encode(self, x: Float[Tensor, "b l h"], valid: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l h"]:
        """Layers and final norm over embedded positions; keys that are not ``valid`` are masked."""
        config = self.config
        rotary = rotary_table(x.shape[1], config.head_dim, config.rope_theta, x)
        masks = attention_masks(x.shape[1], config.sliding_window, valid, x)
        for layer, kind in zip(self.layers, config.layer_types, strict=False):
            x = layer(x, rotary, masks[kind])
        return self.norm(x)
