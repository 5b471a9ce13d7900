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
from torch.autograd.function import FunctionCtx, once_differentiable

from acestep.models.rotary import Rotary, rotary_table, rotate

SLIDING = "sliding_attention"
FULL = "full_attention"


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
        return cast(Tensor, Unit.apply(x, self.factor(x.detach())))  # torch has no kernel of its own for it there

    def factor(self, x: Float[Tensor, "*b h"]) -> Float[Tensor, "*b 1"]:
        """What makes ``x``'s mean square 1; no square of ``x`` is written for it and read again."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        return (norm.square() / x.shape[-1] + self.eps).rsqrt()


class Unit(torch.autograd.Function):
    """``RMSNorm.unit`` with its gradient: in half the turns that torch would take by itself."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, factor: Tensor) -> Tensor:
        """``x`` by what makes its mean square 1."""
        y = (x * factor).to(x.dtype)
        ctx.save_for_backward(y, factor)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of ``x``, through the factor too: what of ``gradient`` points along ``y`` is taken out."""
        y, factor = ctx.saved_tensors
        wide = gradient.to(factor.dtype)
        along = (y * wide).sum(-1, keepdim=True) / -y.shape[-1]
        return torch.addcmul(wide, y.to(factor.dtype), along).mul_(factor).to(gradient.dtype), None


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


def attend(
    q: Float[Tensor, "b l n d"], k: Float[Tensor, "b k g d"], v: Float[Tensor, "b k g d"], mask: Mask = None
) -> Float[Tensor, "b l n*d"]:
    """What each query reads of the values; a group of query heads shares a head of keys and values."""
    if isinstance(mask, Band):
        return mask.attend(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    on_cpu = q.device.type == "cpu"  # where the fused kernel knows of groups, whatever is masked
    if not on_cpu:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=on_cpu)
    return out.transpose(1, 2).flatten(2)


MIN_BLOCK = 64
"""Queries that are worth a matrix product of their own."""
CPU_BLOCK = 32
"""Queries of a block on a processor: as many as its kernel takes at once, since more blocks cost nothing there."""


@dataclass(frozen=True)
class Band:
    """Attention to the positions at most a window away, block by block: time and memory linear in the length.

    Each of M blocks of Q queries sees its own positions and a window on either side, Q + 2 windows in all.

    Attributes:
        window: how far a position sees, both ends included.
        bias: added to the scores of each block; one for all songs where nothing is hidden.
        lost: queries that see nothing; ``None`` where there can be none. As in dense attention, whose scores are then
            all the same most negative number, they read the mean of all values.
    """

    window: int
    bias: Float[Tensor, "#b m 1 q k"]
    lost: Bool[Tensor, "b l"] | None

    @classmethod
    def over(cls, length: int, window: int, valid: Bool[Tensor, "b l"] | None, like: Tensor) -> Band:
        """The band over ``length`` positions, of which those that are not ``valid`` are hidden as keys."""
        block = min(CPU_BLOCK if like.device.type == "cpu" else max(window, MIN_BLOCK), length)
        blocks = -(-length // block)
        can_lose = valid is not None
        if valid is None:
            valid = torch.ones(1, length, dtype=torch.bool, device=like.device)
        keys = F.pad(valid, (window, blocks * block - length + window)).unfold(1, block + 2 * window, block)
        offset = torch.arange(block + 2 * window, device=like.device) - torch.arange(block, device=like.device)[:, None]
        visible = keys[:, :, None, :] & ((offset >= 0) & (offset <= 2 * window))  # (B, M, Q, K)
        lost = ~visible.any(-1).flatten(1)[:, :length] if can_lose else None
        return cls(window, hide(visible, like).unsqueeze(2), lost)

    def attend(
        self, q: Float[Tensor, "b l n d"], k: Float[Tensor, "b l g d"], v: Float[Tensor, "b l g d"]
    ) -> Float[Tensor, "b l n*d"]:
        """What each query reads of the values in its band."""
        songs, length = q.shape[:2]
        blocks, block = self.bias.shape[1], self.bias.shape[3]
        short = blocks * block - length
        near = (extended(x, self.window, short + self.window) for x in (k, v))
        k, near_v = (x.unfold(1, block + 2 * self.window, block).movedim(-1, 2) for x in near)  # (B, M, K, G, D)
        q = extended(q, 0, short).unflatten(1, (blocks, block))  # (B, M, Q, N, D)
        parts = q, k, near_v, self.bias.expand(songs, -1, -1, -1, -1)
        if q.device.type == "cpu":  # whose kernel reads the blocks of a song, which overlap, from where they are
            out = torch.stack([attend(*song) for song in zip(*parts, strict=True)])
        else:
            out = attend(*(part.flatten(0, 1) for part in parts)).unflatten(0, (songs, blocks))
        out = out.flatten(1, 2)[:, :length]
        if self.lost is None:
            return out
        mean = v.mean(1, keepdim=True).repeat_interleave(q.shape[3] // v.shape[2], dim=2).flatten(2)
        return torch.where(self.lost[..., None], mean, out)


def extended(x: Float[Tensor, "b l g d"], before: int, after: int) -> Float[Tensor, "b p g d"]:
    """``x`` with so many positions of zeros on either side."""
    zeros = x.new_zeros(len(x), 1, *x.shape[2:])
    return torch.cat([zeros.expand(-1, before, -1, -1), x, zeros.expand(-1, after, -1, -1)], dim=1)


Mask = Float[Tensor, "*#b #l k"] | Band | None
"""What a position sees: everything, what is added to the scores, or a band."""


def attention_masks(
    length: int, window: int | None, valid: Bool[Tensor, "b l"] | None, like: Tensor
) -> dict[str, Mask]:
    """What self-attention sees by layer type; ``None`` where every position sees every other."""
    full = None if valid is None else hide(valid[:, None, None, :], like)  # (B, 1, 1, L)
    if window is None or length <= window + 1:
        return {FULL: full, SLIDING: full}
    return {FULL: full, SLIDING: Band.over(length, window, valid, like)}


def hide(visible: Bool[Tensor, "*b l k"], like: Tensor) -> Float[Tensor, "*b l k"]:
    """Zero where ``visible``, the most negative finite number elsewhere.

    Finite, so that a row that sees nothing averages everything, as upstream's masks make it, and is never NaN.
    """
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, torch.finfo(like.dtype).min)
