"""How latents move from one time to the next, given the velocity at the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from acestep.flow.noise import NoiseSource
from acestep.flow.path import clean_estimate, noised


@dataclass(frozen=True)
class Step:
    """One step of a generation: from ``t`` to ``t_next``, the ``index``-th (from 0) of ``count``."""

    index: int
    count: int
    t: float
    t_next: float


def steps_between(times: Float[Tensor, " n"]) -> list[Step]:
    """The steps of a schedule: one between each two of its times."""
    pairs = list(pairwise(times.tolist()))
    return [Step(index, len(pairs), t, t_next) for index, (t, t_next) in enumerate(pairs)]


@dataclass(frozen=True)
class Moved:
    """Where a step led: the latents, the noise level ``t`` they now have, and the velocity that was followed."""

    latents: Float[Tensor, "b t c"]
    t: float
    velocity: Float[Tensor, "b t c"]


Corrector = Callable[[Tensor, float], Tensor]
"""The velocity at other latents and another time, for solvers that look twice."""


class Solver(Protocol):
    """One step of integration."""

    def times(self, step: Step) -> tuple[float, ...]:
        """When the velocity is evaluated in ``step``: its length is the step's cost before guidance."""
        ...

    def __call__(
        self,
        x_t: Float[Tensor, "b t c"],
        velocity: Float[Tensor, "b t c"],
        step: Step,
        corrector: Corrector,
        draw: NoiseSource | None,
    ) -> Moved:
        """Move ``x_t`` along ``velocity``, which was evaluated there at ``step.t``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Euler:
    """Follows the velocity in a straight line. One evaluation a step (upstream ``ode``, ``euler``)."""

    def times(self, step: Step) -> tuple[float, ...]:
        """The step's start."""
        return (step.t,)

    def __call__(
        self,
        x_t: Float[Tensor, "b t c"],
        velocity: Float[Tensor, "b t c"],
        step: Step,
        corrector: Corrector,
        draw: NoiseSource | None,
    ) -> Moved:
        """``x_t - (t - t_next) * velocity``."""
        return Moved(x_t - velocity * (step.t - step.t_next), step.t_next, velocity)


@dataclass(frozen=True, kw_only=True)
class Heun:
    """Follows the mean of the velocities at both ends of a straight line. Two evaluations a step.

    Source: upstream ``sampler_mode`` ``heun``.
    """

    def times(self, step: Step) -> tuple[float, ...]:
        """The step's start and end."""
        return (step.t, step.t_next)

    def __call__(
        self,
        x_t: Float[Tensor, "b t c"],
        velocity: Float[Tensor, "b t c"],
        step: Step,
        corrector: Corrector,
        draw: NoiseSource | None,
    ) -> Moved:
        """Predict, look again, average."""
        length = step.t - step.t_next
        mean = (velocity + corrector(x_t - velocity * length, step.t_next)) / 2
        return Moved(x_t - mean * length, step.t_next, mean)


class Renoise(Enum):
    """To which level SDE steps renoise."""

    linear = "linear"
    schedule = "schedule"


@dataclass(frozen=True, kw_only=True)
class SDE:
    """Jumps to the clean estimate and adds fresh noise. One evaluation a step (upstream ``sde``).

    ``renoise=linear`` goes to level ``1 - (index + 1) / count``, which ignores shift and custom times, as upstream's
    base and SFT files do; ``schedule`` goes to the schedule's next time, as its turbo files do.
    """

    renoise: Renoise = Renoise.linear

    def __post_init__(self) -> None:
        """Accept the level's name."""
        object.__setattr__(self, "renoise", Renoise(self.renoise))

    def times(self, step: Step) -> tuple[float, ...]:
        """The step's start."""
        return (step.t,)

    def __call__(
        self,
        x_t: Float[Tensor, "b t c"],
        velocity: Float[Tensor, "b t c"],
        step: Step,
        corrector: Corrector,
        draw: NoiseSource | None,
    ) -> Moved:
        """Predict the data, renoise."""
        level = 1 - (step.index + 1) / step.count if self.renoise is Renoise.linear else step.t_next
        clean = clean_estimate(x_t, velocity, step.t)
        if level == 0:
            return Moved(clean, 0.0, velocity)
        if draw is None:
            raise ValueError("solver=sde: needs fresh noise at every step; pass draw=SongNoise(...), or use Euler()")
        return Moved(noised(clean, draw().to(clean), level), level, velocity)
