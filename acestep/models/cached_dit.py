"""The DiT for inference: condition keys and values are cached, and the two branches of guidance share computation.

All songs of an evaluation have the same timestep, and their conditions stay the same over the steps:

* Keys and values of the cross-attention are cached per condition.
* A condition of equal tokens, such as the null condition, gives a constant cross-attention output.
* Both branches of classifier-free guidance share computation up to the first cross-attention.

The results are ``DiT.forward``'s up to rounding.

Shapes: B songs, S patches, L condition tokens, H width; G = B x branches, branch by branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acestep.models.attention import Mask, additive_mask, scaled_dot_product
from acestep.models.cpu_buffers import BufferPool, has_hooks
from acestep.models.dit import DiT, DiTLayer
from acestep.models.layers import RMSNorm, SwiGLU
from acestep.models.rotary import Rotary
from acestep.types import Conditions

CPU_ROWS = 2048
"""Positions that a CPU takes through a layer at a time, so that their intermediate tensors stay in its cache."""

MAX_PROGRAMS = 64
"""Variants of the layer that the compiler may build before it falls back to eager mode."""

Block = tuple[slice, slice]
"""A range of songs and a range of their positions."""


class CachedDiT:
    """A velocity field (``types.PairField``) for few conditions and many timesteps, without gradients.

    Hooks fire on ``nn.Linear`` only: other modules of a layer are not called. With ``compiled``, torch's compiler
    builds a program for each kind of layer at its first call.
    """

    def __init__(self, decoder: DiT, compiled: bool = False) -> None:
        self.decoder = decoder
        self.compiled = compiled
        self._cache: dict[int, CachedConditions] = {}
        self._pool = BufferPool()

    @torch.no_grad()
    def __call__(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions
    ) -> Float[Tensor, "b t c"]:
        """The velocity at ``x_t``; all values of ``t`` must be equal."""
        return self._velocity(x_t, t, [self._cached(conditions)])

    @torch.no_grad()
    def pair(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions, null: Conditions
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """The velocities under ``conditions`` and under ``null``, which may differ in their states only."""
        conditional, unconditional = self._velocity(x_t, t, [self._cached(conditions), self._cached(null)]).chunk(2)
        return conditional, unconditional

    def _cached(self, conditions: Conditions) -> CachedConditions:
        if id(conditions) not in self._cache:  # the entry keeps its conditions alive, so no other object gets their id
            self._cache[id(conditions)] = CachedConditions(self.decoder, conditions)
            if self.compiled:
                self._cache[id(conditions)].mark_dynamic_length()
        return self._cache[id(conditions)]

    def _velocity(self, x_t: Tensor, t: Tensor, branches: Sequence[CachedConditions]) -> Tensor:
        decoder, first = self.decoder, branches[0]
        dtype = first.conditions.states.dtype
        self._pool.hooked = has_hooks(decoder)
        x = decoder.embed_patches(x_t.to(dtype), first.conditions.context, first.frames)  # (B, S, H)
        if first.frames is not None:  # masks are then per song, and shared by all layers: no shared computation
            x = x.repeat(len(branches), 1, 1)
        rotary, masks = first.rotary_and_masks(decoder, x)
        embedding, modulation = decoder.embed_time(t[:1], torch.zeros_like(t[:1]), dtype)
        layer_function = _compiled_layer() if self.compiled else cached_layer
        with _compiler_limits() if self.compiled else nullcontext():
            for index, (layer, kind) in enumerate(zip(_layers(decoder), decoder.config.stack.layer_types, strict=True)):
                cross = [branch.cross_attention[index] for branch in branches]
                x = layer_function(layer, x, modulation, rotary, masks[kind], cross, self._pool)
        return decoder.output(x, embedding)[:, : x_t.shape[1]]


class CachedConditions:
    """Results that depend on the conditions alone: cross-attention by layer, rotary table and masks."""

    def __init__(self, decoder: DiT, conditions: Conditions) -> None:
        self.conditions = conditions
        self.frames, tokens = decoder.padding_masks(conditions)
        raw = conditions.states.detach()  # (B, L, E); null states are a view of a parameter
        states = decoder.condition_embedder(raw)  # (B, L, H)
        mask = None if tokens is None else additive_mask(tokens[:, None, None, :], states)
        build = ConstantCrossAttention.build if bool((raw == raw[:, :1]).all()) else CrossAttentionKV.build
        self.cross_attention: list[CachedCrossAttention] = [build(layer, states, mask) for layer in _layers(decoder)]
        self._layouts: dict[tuple[int, ...], tuple[Rotary, dict[str, Mask]]] = {}

    def mark_dynamic_length(self) -> None:
        """Keep the compiler from specialising its program to this number of tokens."""
        for cross in self.cross_attention:
            if isinstance(cross, CrossAttentionKV):
                for heads in (cross.keys, cross.values):
                    torch._dynamo.maybe_mark_dynamic(heads, 1)
                if cross.mask is not None:
                    torch._dynamo.maybe_mark_dynamic(cross.mask, 3)

    def rotary_and_masks(self, decoder: DiT, x: Float[Tensor, "g s h"]) -> tuple[Rotary, dict[str, Mask]]:
        """``DiT.rotary_and_masks`` for ``x``, cached by shape."""
        shape = tuple(x.shape)
        if shape not in self._layouts:
            frames = None if self.frames is None else self.frames.repeat(len(x) // len(self.frames), 1)
            self._layouts[shape] = decoder.rotary_and_masks(x, frames)
        return self._layouts[shape]


@dataclass(frozen=True)
class CrossAttentionKV:
    """Cached keys and values of a condition in one layer."""

    keys: Float[Tensor, "b l g d"]
    values: Float[Tensor, "b l g d"]
    mask: Float[Tensor, "b 1 1 l"] | None

    @classmethod
    def build(
        cls, layer: DiTLayer, states: Float[Tensor, "b l h"], mask: Float[Tensor, "b 1 1 l"] | None
    ) -> CrossAttentionKV:
        return cls(*layer.cross_attn.keys_values(states), mask)

    @property
    def songs(self) -> int:
        return len(self.keys)

    def __call__(
        self, layer: DiTLayer, x: Float[Tensor, "n s h"], songs: slice, pool: BufferPool
    ) -> Float[Tensor, "n s h"]:
        """Cross-attention output for patches ``x`` of ``songs``."""
        attention = layer.cross_attn
        y = pool.normalize(layer.cross_attn_norm, x).mul_(layer.cross_attn_norm.weight)
        q = pool.heads(attention.q_proj, attention.q_norm, y, None, "queries")
        mask = None if self.mask is None else self.mask[songs]
        attended = scaled_dot_product(q, self.keys[songs], self.values[songs], mask)
        return pool.linear(attention.o_proj, attended, "output")


@dataclass(frozen=True)
class ConstantCrossAttention:
    """Cross-attention to a condition of equal tokens in one layer: the token's value, whatever the weights."""

    output: Float[Tensor, "b 1 h"]

    @classmethod
    def build(cls, layer: DiTLayer, states: Float[Tensor, "b l h"], mask: Tensor | None) -> ConstantCrossAttention:
        """``mask`` changes nothing where all tokens are equal."""
        token = states[:, :1]
        return cls(layer.cross_attn(token, source=token))

    @property
    def songs(self) -> int:
        return len(self.output)

    def __call__(
        self, layer: DiTLayer, x: Float[Tensor, "n s h"], songs: slice, pool: BufferPool
    ) -> Float[Tensor, "n 1 h"]:
        """Cross-attention output for any patch of ``songs``."""
        return self.output[songs]


CachedCrossAttention = CrossAttentionKV | ConstantCrossAttention


def _layers(decoder: DiT) -> list[DiTLayer]:
    """The layers with their type, which ``nn.ModuleList`` does not carry."""
    return cast(list[DiTLayer], list(decoder.layers))


def cached_layer(
    layer: DiTLayer,
    x: Float[Tensor, "n s h"],
    modulation: Float[Tensor, "1 6 h"],
    rotary: Rotary,
    mask: Mask,
    branches: Sequence[CachedCrossAttention],
    pool: BufferPool,
) -> Float[Tensor, "g s h"]:
    """``DiTLayer.forward`` under each of ``branches``, block by block, into reused buffers and over ``x``.

    ``x`` has B songs as long as the branches are equal, before the first layer, and B x branches from then on.
    """
    if torch.compiler.is_compiling() or pool.hooked:
        x = x.clone()  # torch 2.11 compiles in-place updates of an input wrongly for several songs of dynamic length
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = layer.modulations(modulation, x.dtype)
    attention, songs = layer.self_attn, branches[0].songs

    def project(block: Block) -> tuple[Tensor, ...]:
        y = _modulated_norm(x[block], layer.self_attn_norm, shift, scale, pool)
        table = rotary[0][block[1]], rotary[1][block[1]]
        q = pool.heads(attention.q_proj, attention.q_norm, y, table, "queries")
        k = pool.heads(attention.k_proj, attention.k_norm, y, table, "keys")
        return q, k, attention.value_heads(y)

    q, k, v = _by_blocks(project, x, pool)
    attended = scaled_dot_product(q, k, v, mask)
    for block in _blocks(x):
        x[block].addcmul_(gate, pool.linear(attention.o_proj, attended[block], "output"))
    if len(x) < songs * len(branches):
        x = x.repeat(len(branches), 1, 1)
    for block in _blocks(x):
        y = x[block]
        for number, cross in enumerate(branches):
            first, last = max(block[0].start, number * songs), min(block[0].stop, (number + 1) * songs)
            if first < last:
                rows = slice(first - block[0].start, last - block[0].start)
                y[rows] += cross(layer, y[rows], slice(first - number * songs, last - number * songs), pool)
        normed = _modulated_norm(y, layer.mlp_norm, mlp_shift, mlp_scale, pool)
        y.addcmul_(mlp_gate, _mlp(layer.mlp, normed, pool))
    return x


@cache
def _compiled_layer() -> Callable[..., Tensor]:
    """:func:`cached_layer` compiled: programs for the first length, then others for any length."""
    return torch.compile(cached_layer)


@contextmanager
def _compiler_limits() -> Iterator[None]:
    """Allow a program for each variant: first or later layer, full or sliding, guided or not, batched or not.

    Torch's default limit is 8, beyond which it falls back to eager mode.

    Raises:
        ValueError: the compiler fails, for instance where there is no C++ compiler.
    """
    config: Any = torch._dynamo.config  # its attributes are created at run time
    with config.patch(recompile_limit=MAX_PROGRAMS):
        try:
            yield
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise ValueError(
                f"compile=true: torch's compiler failed ({reason}); install a C++ compiler, or leave it out"
            ) from error


def _modulated_norm(x: Tensor, norm: RMSNorm, shift: Tensor, scale: Tensor, pool: BufferPool) -> Tensor:
    """``modulate(norm(x), shift, scale)`` in fewer passes over memory."""
    y = pool.normalize(norm, x)
    return torch.addcmul(shift, y, norm.weight * (1 + scale), out=y)


def _mlp(mlp: SwiGLU, x: Tensor, pool: BufferPool) -> Tensor:
    """``mlp(x)`` into reused buffers."""
    gate, up = pool.linear(mlp.gate_proj, x, "gate"), pool.linear(mlp.up_proj, x, "up")
    return pool.linear(mlp.down_proj, F.silu(gate, inplace=not pool.hooked).mul_(up), "output")


def _by_blocks(
    function: Callable[[Block], tuple[Tensor, ...]], x: Float[Tensor, "g s h"], pool: BufferPool
) -> tuple[Tensor, ...]:
    """The results of ``function`` for every block of ``x``, concatenated."""
    blocks = list(_blocks(x))
    if len(blocks) == 1:
        return function(blocks[0])
    wholes: tuple[Tensor, ...] = ()
    for block in blocks:
        parts = function(block)
        wholes = wholes or tuple(
            pool.buffer(f"whole {number}", part, *x.shape[:2], *part.shape[2:]) for number, part in enumerate(parts)
        )
        for whole, part in zip(wholes, parts, strict=True):
            whole[block] = part
    return wholes


def _blocks(x: Float[Tensor, "g s h"]) -> Iterator[Block]:
    """All of ``x`` on a GPU; on a CPU, several short songs, or parts of about equal length of a long one."""
    songs, length = x.shape[:2]
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(0, songs), slice(0, length)
        return
    together, parts = max(1, CPU_ROWS // length), -(-length // CPU_ROWS)
    for first in range(0, songs, together):
        for part in range(parts):
            positions = slice(part * length // parts, (part + 1) * length // parts)
            yield slice(first, min(first + together, songs)), positions
