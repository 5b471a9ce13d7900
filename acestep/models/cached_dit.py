"""The velocity field of one generation: what its many evaluations have in common is computed once.

All songs of an evaluation are at one time, and their conditions stay: keys and values are kept, and a condition that is
one token over and over, as the null one is, has one answer for whoever asks. Both predictions of guidance are the same
until they first hear their condition. The numbers are ``DiT.forward``'s but for rounding.

Shapes: B songs, S patches, H width; G songs under all conditions at once, one condition after the other.
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

from acestep.models.attention import Mask, attend, hide
from acestep.models.cpu_buffers import Scratch, is_watched
from acestep.models.dit import DiT, DiTLayer
from acestep.models.layers import RMSNorm, SwiGLU
from acestep.models.rotary import Rotary
from acestep.types import Conditions

ROWS = 2048
"""Positions that a processor takes through a layer at a time, so that what is made of them stays in its cache."""

PROGRAMS = 64
"""That the compiler may make of a layer before it gives up."""

Block = tuple[slice, slice]
"""Some songs, and some of their positions."""


class Generation:
    """A velocity field (``types.PairField``) for few conditions and many times. Has no gradients.

    Of the modules in a layer, linear ones alone are called as such: hooks on others hear nothing.

    Where it is to be ``compiled``, torch's compiler makes one program of each kind of layer when it first meets it.
    """

    def __init__(self, decoder: DiT, compiled: bool = False) -> None:
        self.decoder = decoder
        self.compiled = compiled
        self._heard: dict[int, Heard] = {}
        self._scratch = Scratch()

    @torch.no_grad()
    def __call__(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions
    ) -> Float[Tensor, "b t c"]:
        """The velocity at ``x_t`` and the one time that all of ``t`` is."""
        return self._velocity(x_t, t, [self._hear(conditions)])

    @torch.no_grad()
    def pair(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions, null: Conditions
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """The velocities under ``conditions`` and under ``null``, which differ in their states alone."""
        one, other = self._velocity(x_t, t, [self._hear(conditions), self._hear(null)]).chunk(2)
        return one, other

    def _hear(self, conditions: Conditions) -> Heard:
        if id(conditions) not in self._heard:  # what was heard holds its conditions, so that no other get their id
            self._heard[id(conditions)] = Heard(self.decoder, conditions)
            if self.compiled:
                self._heard[id(conditions)].has_any_length()
        return self._heard[id(conditions)]

    def _velocity(self, x_t: Tensor, t: Tensor, branches: Sequence[Heard]) -> Tensor:
        decoder, first = self.decoder, branches[0]
        dtype = first.conditions.states.dtype
        self._scratch.watched = is_watched(decoder)
        x = decoder.enter(x_t.to(dtype), first.conditions.context, first.frames)  # (B, S, H)
        if first.frames is not None:  # masks are then of songs, and all layers have the same
            x = x.repeat(len(branches), 1, 1)
        rotary, masks = first.layout(decoder, x)
        embedding, modulation = decoder.times(t[:1], torch.zeros_like(t[:1]), dtype)
        evaluated = _compiled() if self.compiled else _evaluated
        with _compiling() if self.compiled else nullcontext():
            for index, (layer, kind) in enumerate(zip(_layers(decoder), decoder.config.stack.layer_types, strict=True)):
                answers = [branch.answers[index] for branch in branches]
                x = evaluated(layer, x, modulation, rotary, masks[kind], answers, self._scratch)
        return decoder.leave(x, embedding)[:, : x_t.shape[1]]


class Heard:
    """Conditions as the layers hear them: what each layer's cross-attention answers, and what frames see."""

    def __init__(self, decoder: DiT, conditions: Conditions) -> None:
        self.conditions = conditions
        self.frames, tokens = decoder.hidden(conditions)
        given = conditions.states.detach()  # (B, L, E); null states are a view of a parameter
        states = decoder.condition_embedder(given)  # (B, L, H)
        mask = None if tokens is None else hide(tokens[:, None, None, :], states)
        is_one = bool((given == given[:, :1]).all())
        heard = Constant.of if is_one else Memory.of
        self.answers: list[Answer] = [heard(layer, states, mask) for layer in _layers(decoder)]
        self._layouts: dict[tuple[int, ...], tuple[Rotary, dict[str, Mask]]] = {}

    def has_any_length(self) -> None:
        """Tell the compiler, which would else make a program for this number of tokens alone."""
        for answer in self.answers:
            if isinstance(answer, Memory):
                for heads in (answer.keys, answer.values):
                    torch._dynamo.maybe_mark_dynamic(heads, 1)
                if answer.mask is not None:
                    torch._dynamo.maybe_mark_dynamic(answer.mask, 3)

    def layout(self, decoder: DiT, x: Float[Tensor, "g s h"]) -> tuple[Rotary, dict[str, Mask]]:
        """``DiT.layout`` for patches of ``x``'s shape."""
        shape = tuple(x.shape)
        if shape not in self._layouts:
            frames = None if self.frames is None else self.frames.repeat(len(x) // len(self.frames), 1)
            self._layouts[shape] = decoder.layout(x, frames)
        return self._layouts[shape]


@dataclass(frozen=True)
class Memory:
    """Keys and values of a condition in one layer."""

    keys: Float[Tensor, "b l g d"]
    values: Float[Tensor, "b l g d"]
    mask: Float[Tensor, "b 1 1 l"] | None

    @classmethod
    def of(cls, layer: DiTLayer, states: Float[Tensor, "b l h"], mask: Float[Tensor, "b 1 1 l"] | None) -> Memory:
        """What ``layer`` makes of ``states``."""
        return cls(*layer.cross_attn.keys_values(states), mask)

    @property
    def songs(self) -> int:
        """How many."""
        return len(self.keys)

    def __call__(
        self, layer: DiTLayer, x: Float[Tensor, "n s h"], songs: slice, scratch: Scratch
    ) -> Float[Tensor, "n s h"]:
        """What patches ``x`` of ``songs`` hear."""
        attention = layer.cross_attn
        y = scratch.unit(layer.cross_attn_norm, x).mul_(layer.cross_attn_norm.weight)
        q = scratch.of(attention.q_proj, y, "queries").unflatten(-1, (-1, attention.head_dim))
        mask = None if self.mask is None else self.mask[songs]
        heard = attend(attention.q_norm(q), self.keys[songs], self.values[songs], mask)
        return scratch.of(attention.o_proj, heard, "heard")


@dataclass(frozen=True)
class Constant:
    """What a condition that is one token over and over answers in one layer: its value, whatever the weights."""

    answer: Float[Tensor, "b 1 h"]

    @classmethod
    def of(cls, layer: DiTLayer, states: Float[Tensor, "b l h"], mask: Tensor | None) -> Constant:
        """What ``layer`` makes of ``states``; hidden or not, they are the same."""
        token = states[:, :1]
        return cls(layer.cross_attn(token, source=token))

    @property
    def songs(self) -> int:
        """How many."""
        return len(self.answer)

    def __call__(
        self, layer: DiTLayer, x: Float[Tensor, "n s h"], songs: slice, scratch: Scratch
    ) -> Float[Tensor, "n 1 h"]:
        """What any patch of ``songs`` hears."""
        return self.answer[songs]


Answer = Memory | Constant


def _layers(decoder: DiT) -> list[DiTLayer]:
    """The layers by their type, which torch forgets."""
    return cast(list[DiTLayer], list(decoder.layers))


def _evaluated(
    layer: DiTLayer,
    x: Float[Tensor, "n s h"],
    modulation: Float[Tensor, "1 6 h"],
    rotary: Rotary,
    mask: Mask,
    branches: Sequence[Answer],
    scratch: Scratch,
) -> Float[Tensor, "g s h"]:
    """``DiTLayer.forward`` of ``x`` under each of ``branches``; while they are the same, ``x`` is there once.

    Writes over ``x``.
    """
    if torch.compiler.is_compiling() or scratch.watched:
        x = x.clone()  # torch 2.11 makes wrong programs for several songs of any length, written over what is given
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = layer.modulations(modulation, x.dtype)
    attention, songs = layer.self_attn, branches[0].songs

    def project(block: Block) -> tuple[Tensor, ...]:
        y = _prepared(x[block], layer.self_attn_norm, shift, scale, scratch)
        turn = rotary[0][block[1]], rotary[1][block[1]]
        q = scratch.heads(attention.q_proj, attention.q_norm, y, turn, "queries")
        k = scratch.heads(attention.k_proj, attention.k_norm, y, turn, "keys")
        return q, k, attention.v_proj(y).unflatten(-1, (-1, attention.head_dim))

    q, k, v = _by_blocks(project, x, scratch)
    heard = attend(q, k, v, mask)
    for block in _blocks(x):
        x[block].addcmul_(gate, scratch.of(attention.o_proj, heard[block], "heard"))
    if len(x) < songs * len(branches):
        x = x.repeat(len(branches), 1, 1)
    for block in _blocks(x):
        y = x[block]
        for number, answer in enumerate(branches):
            first, last = max(block[0].start, number * songs), min(block[0].stop, (number + 1) * songs)
            if first < last:
                rows = slice(first - block[0].start, last - block[0].start)
                y[rows] += answer(layer, y[rows], slice(first - number * songs, last - number * songs), scratch)
        prepared = _prepared(y, layer.mlp_norm, mlp_shift, mlp_scale, scratch)
        y.addcmul_(mlp_gate, _transformed(layer.mlp, prepared, scratch))
    return x


@cache
def _compiled() -> Callable[..., Tensor]:
    """``_evaluated`` through torch's compiler: programs for the first length, then others for any length."""
    return torch.compile(_evaluated)


@contextmanager
def _compiling() -> Iterator[None]:
    """Room for a program of each kind: first layer or later, full or sliding, with guidance or without, batched or not.

    Torch's own limit is 8, past which it goes on without its compiler.

    Raises:
        ValueError: the compiler fails, for instance where there is none for C++.
    """
    config: Any = torch._dynamo.config  # types of it are made at run time
    with config.patch(recompile_limit=PROGRAMS):
        try:
            yield
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise ValueError(
                f"compile=true: torch's compiler failed ({reason}); see that there is one for C++, or leave it out"
            ) from error


def _prepared(x: Tensor, norm: RMSNorm, shift: Tensor, scale: Tensor, scratch: Scratch) -> Tensor:
    """``modulated(norm(x), shift, scale)`` in fewer turns."""
    y = scratch.unit(norm, x)
    return torch.addcmul(shift, y, norm.weight * (1 + scale), out=y)


def _transformed(mlp: SwiGLU, x: Tensor, scratch: Scratch) -> Tensor:
    """``mlp(x)``, written over what nobody needs again."""
    gate, up = scratch.of(mlp.gate_proj, x, "gate"), scratch.of(mlp.up_proj, x, "up")
    return scratch.of(mlp.down_proj, F.silu(gate, inplace=not scratch.watched).mul_(up), "heard")


def _by_blocks(
    function: Callable[[Block], tuple[Tensor, ...]], x: Float[Tensor, "g s h"], scratch: Scratch
) -> tuple[Tensor, ...]:
    """What ``function`` makes of every block of ``x``, put together."""
    blocks = list(_blocks(x))
    if len(blocks) == 1:
        return function(blocks[0])
    wholes: tuple[Tensor, ...] = ()
    for block in blocks:
        parts = function(block)
        wholes = wholes or tuple(
            scratch.room(f"whole {number}", part, *x.shape[:2], *part.shape[2:]) for number, part in enumerate(parts)
        )
        for whole, part in zip(wholes, parts, strict=True):
            whole[block] = part
    return wholes


def _blocks(x: Float[Tensor, "g s h"]) -> Iterator[Block]:
    """All of ``x`` on an accelerator; else short songs together, long ones in about equal parts."""
    songs, length = x.shape[:2]
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        yield slice(0, songs), slice(0, length)
        return
    together, parts = max(1, ROWS // length), -(-length // ROWS)
    for first in range(0, songs, together):
        for part in range(parts):
            positions = slice(part * length // parts, (part + 1) * length // parts)
            yield slice(first, min(first + together, songs)), positions
