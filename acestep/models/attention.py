"""Which positions attend to which, and the attention itself: dense, or within a band of positions.

Shapes: B batch, L positions, K key positions, N query heads, G key heads, D width of one head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SLIDING = "sliding_attention"
FULL = "full_attention"


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
        if q.device.type == "cpu" and not torch.compiler.is_compiling() and songs > 1:
            # Its kernel reads the blocks of a song, which overlap, from where they are. A program would be for so many
            # songs alone.
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
