"""Schedules: the N + 1 times of a generation of N steps, from 1 (noise) down, in float32.

Upstream computes them in the network's bfloat16; here they are float32, which parity in float32 does not show.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

TURBO_STEPS = 8
TURBO_SHIFTS = (1.0, 2.0, 3.0)
TURBO_MAX_STEPS = 20
MAX_STEPS = 10_000
"""Upper limit of any schedule's steps; more is taken for a typing error."""

Times = TypeVar("Times", float, Tensor)


class Schedule(ABC):
    """The times of a generation. To add a schedule, subclass and implement ``__call__``."""

    @abstractmethod
    def __call__(self) -> Float[Tensor, " n"]:
        """Non-increasing times in [0, 1], float32, on the CPU; there is one step between each two."""


def shifted(t: Times, shift: float) -> Times:
    """``t`` moved towards noise for ``shift`` > 1; 0 and 1 stay (Esser et al. 2024, section 5.3.2)."""
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """``steps`` equal steps from 1 to 0.

    Args:
        steps: number of steps.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def __call__(self) -> Float[Tensor, " n"]:
        return Shifted(steps=self.steps, shift=1.0)()


@dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
    """Equal steps, shifted: more of them at high noise for ``shift`` > 1. Upstream ``shift``; 1 equals ``Linear``.

    Turbo with a custom number of steps is this schedule too (upstream ``xl_turbo``, ``infer_steps``).

    Args:
        steps: number of steps.
        shift: above 1 towards noise, so that more steps are there; 1 for equal steps.
    """

    steps: int = 50
    shift: float = 3.0

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        _check_shift(self.shift)

    def __call__(self) -> Float[Tensor, " n"]:
        # Float32 rounding could put the first time just above 1, outside every guidance interval.
        return shifted(torch.linspace(1, 0, self.steps + 1), self.shift).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class Custom(Schedule):
    """Given times. Without a final 0 the result stays noisy, as in upstream; ``close`` appends one.

    Args:
        timesteps: the times, from at most 1 down to 0.
        close: whether to append a final 0.
    """

    timesteps: tuple[float, ...]
    close: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", _checked_times(self.timesteps))
        if len(self.timesteps) + (self.close and self.timesteps[-1] > 0) < 2:
            raise ValueError(f"schedule.timesteps={list(self.timesteps)}: need at least two, for at least one step")

    def __call__(self) -> Float[Tensor, " n"]:
        tail = [0.0] if self.close and self.timesteps[-1] > 0 else []
        return torch.tensor([*self.timesteps, *tail])


@dataclass(frozen=True, kw_only=True)
class Turbo(Schedule):
    """The eight steps that turbo models are distilled for. The shift is rounded to 1, 2 or 3, as in upstream.

    Source: upstream ``xl_turbo`` model file, ``SHIFT_TIMESTEPS``.

    Args:
        shift: 1, 2 or 3; other values are rounded to one of them.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        _check_shift(self.shift)

    def __call__(self) -> Float[Tensor, " n"]:
        nearest = min(TURBO_SHIFTS, key=lambda shift: abs(shift - self.shift))
        return Shifted(steps=TURBO_STEPS, shift=nearest)()


@dataclass(frozen=True, kw_only=True)
class TurboCustom(Schedule):
    """Given times, each rounded to the nearest of a turbo model (its 8-step schedules of shift 1, 2, 3).

    Trailing zeros and everything after the twentieth value are dropped, and a 0 is appended. Source: upstream
    ``xl_turbo`` model file, ``timesteps``.

    Args:
        timesteps: the times, from at most 1 down; each is moved to the nearest that turbo models know.
    """

    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "timesteps", _checked_times(self.timesteps))
        if self.timesteps[0] == 0:
            raise ValueError(f"schedule.timesteps={list(self.timesteps)}: need one above 0")

    def __call__(self) -> Float[Tensor, " n"]:
        known = sorted({float(t) for shift in TURBO_SHIFTS for t in Turbo(shift=shift)()[:-1]}, reverse=True)
        given = [t for t in self.timesteps if t > 0][:TURBO_MAX_STEPS]
        return torch.tensor([*(min(known, key=lambda k: abs(k - t)) for t in given), 0.0])


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"schedule.steps={steps}: need >= 1, a whole number of at most {MAX_STEPS}")


def _check_shift(shift: float) -> None:
    if not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"schedule.shift={shift}: need > 0 (1 leaves steps equal, 3 spends more at high noise)")


def _checked_times(values: tuple[float, ...]) -> tuple[float, ...]:
    times = tuple(float(t) for t in values)
    falling = all(later <= earlier for earlier, later in pairwise(times))
    if not times or not falling or not all(0 <= t <= 1 for t in times):
        raise ValueError(f"schedule.timesteps={list(times)}: need times from 1 (noise) down to 0 (data), none rising")
    return times
