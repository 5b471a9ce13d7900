"""Attention masks and grouped-query scaled dot-product attention: dense, or within a sliding window.

Shapes: B batch, L positions, K key positions, N query heads, G key and value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SLIDING = "sliding_attention"
FULL = "full_attention"


def scaled_dot_product(
    q: Float[Tensor, "b l n d"], k: Float[Tensor, "b k g d"], v: Float[Tensor, "b k g d"], mask: Mask = None
) -> Float[Tensor, "b l n*d"]:
    """Grouped-query attention; each group of N / G query heads shares one key and value head."""
    if isinstance(mask, BandMask):
        return mask.scaled_dot_product(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    on_cpu = q.device.type == "cpu"  # the fused CPU kernel supports grouped queries with any mask; the GPU's do not
    if not on_cpu:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=on_cpu)
    return out.transpose(1, 2).flatten(2)


MIN_BLOCK = 64
"""Fewest queries in a block off the CPU, so that its matrix product is worth a kernel launch."""
CPU_BLOCK = 32
"""Queries in a block on the CPU: the tile of its attention kernel. More blocks cost nothing there."""


@dataclass(frozen=True)
class BandMask:
    """Sliding-window attention in blocks: time and memory are linear in the length.

    Each of M blocks of Q queries attends to its own positions and to one window on either side: Q + 2 windows of keys.

    Attributes:
        window: largest distance between a query and its keys, inclusive.
        bias: added to the scores of each block; B is 1 where no key is masked.
        fully_masked: queries all of whose keys are masked; ``None`` where there can be none. They return the mean of
            all values, as dense attention does, whose scores are then all the same most negative number.
    """

    window: int
    bias: Float[Tensor, "#b m 1 q k"]
    fully_masked: Bool[Tensor, "b l"] | None

    @classmethod
    def build(cls, length: int, window: int, valid: Bool[Tensor, "b l"] | None, like: Tensor) -> BandMask:
        """The mask for ``length`` positions; keys that are not ``valid`` are masked. Device and dtype of ``like``."""
        block = min(CPU_BLOCK if like.device.type == "cpu" else max(window, MIN_BLOCK), length)
        blocks = -(-length // block)
        has_padding = valid is not None
        if valid is None:
            valid = torch.ones(1, length, dtype=torch.bool, device=like.device)
        keys = F.pad(valid, (window, blocks * block - length + window)).unfold(1, block + 2 * window, block)
        offset = torch.arange(block + 2 * window, device=like.device) - torch.arange(block, device=like.device)[:, None]
        visible = keys[:, :, None, :] & ((offset >= 0) & (offset <= 2 * window))  # (B, M, Q, K)
        fully_masked = ~visible.any(-1).flatten(1)[:, :length] if has_padding else None
        return cls(window, additive_mask(visible, like).unsqueeze(2), fully_masked)

    def scaled_dot_product(
        self, q: Float[Tensor, "b l n d"], k: Float[Tensor, "b l g d"], v: Float[Tensor, "b l g d"]
    ) -> Float[Tensor, "b l n*d"]:
        """:func:`scaled_dot_product` of each query with the keys in its window."""
        songs, length = q.shape[:2]
        blocks, block = self.bias.shape[1], self.bias.shape[3]
        missing = blocks * block - length
        padded = (_zero_pad(x, self.window, missing + self.window) for x in (k, v))
        k, near_v = (x.unfold(1, block + 2 * self.window, block).movedim(-1, 2) for x in padded)  # (B, M, K, G, D)
        q = _zero_pad(q, 0, missing).unflatten(1, (blocks, block))  # (B, M, Q, N, D)
        parts = q, k, near_v, self.bias.expand(songs, -1, -1, -1, -1)
        if q.device.type == "cpu" and not torch.compiler.is_compiling() and songs > 1:
            # One song at a time, so that the kernel reads its overlapping blocks in place instead of a copy. Compiled
            # code would be specialised to the number of songs.
            out = torch.stack([scaled_dot_product(*song) for song in zip(*parts, strict=True)])
        else:
            out = scaled_dot_product(*(part.flatten(0, 1) for part in parts)).unflatten(0, (songs, blocks))
        out = out.flatten(1, 2)[:, :length]
        if self.fully_masked is None:
            return out
        mean = v.mean(1, keepdim=True).repeat_interleave(q.shape[3] // v.shape[2], dim=2).flatten(2)
        return torch.where(self.fully_masked[..., None], mean, out)


Mask = Float[Tensor, "*#b #l k"] | BandMask | None
"""``None`` (nothing masked), a tensor that is added to the scores, or a sliding window."""


def attention_masks(
    length: int, window: int | None, valid: Bool[Tensor, "b l"] | None, like: Tensor
) -> dict[str, Mask]:
    """Self-attention masks by layer type; ``None`` where every position attends to every other."""
    full = None if valid is None else additive_mask(valid[:, None, None, :], like)  # (B, 1, 1, L)
    if window is None or length <= window + 1:
        return {FULL: full, SLIDING: full}
    return {FULL: full, SLIDING: BandMask.build(length, window, valid, like)}


def additive_mask(visible: Bool[Tensor, "*b l k"], like: Tensor) -> Float[Tensor, "*b l k"]:
    """Zero where ``visible``, the most negative finite number of ``like``'s dtype elsewhere.

    Finite, so that a fully masked row averages all values, as with upstream's masks, and is never NaN.
    """
    return torch.zeros_like(visible, dtype=like.dtype).masked_fill_(~visible, torch.finfo(like.dtype).min)


def _zero_pad(x: Float[Tensor, "b l g d"], before: int, after: int) -> Float[Tensor, "b p g d"]:
    zeros = x.new_zeros(len(x), 1, *x.shape[2:])
    return torch.cat([zeros.expand(-1, before, -1, -1), x, zeros.expand(-1, after, -1, -1)], dim=1)
