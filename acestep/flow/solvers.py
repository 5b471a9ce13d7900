"""Solvers: how latents move from one time to the next, given the velocity at the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from acestep.flow.noise import NoiseSource
from acestep.flow.path import Latents, clean_estimate, noised


@dataclass(frozen=True)
class Step:
    """One step of a generation: from ``t`` to ``t_next``, number ``index`` (from 0) of ``count``."""

    index: int
    count: int
    t: float
    t_next: float


def steps_between(times: Float[Tensor, " n"]) -> list[Step]:
    """The n - 1 steps of a schedule of n times."""
    pairs = list(pairwise(times.tolist()))
    return [Step(index, len(pairs), t, t_next) for index, (t, t_next) in enumerate(pairs)]


@dataclass(frozen=True)
class StepResult:
    """The latents after a step, their noise level ``t``, and the velocity that was used."""

    latents: Latents
    t: float
    velocity: Latents


Evaluate = Callable[[Tensor, float], Tensor]
"""The guided velocity at other latents and another time, for solvers with more than one evaluation a step."""


class Solver(ABC):
    """One step of integration.

    To add a solver, subclass and implement ``__call__``; a solver that evaluates the velocity again also overrides
    :meth:`times`::

        @dataclass(frozen=True, kw_only=True)
        class Midpoint(Solver):
            def times(self, step):
                return (step.t, (step.t + step.t_next) / 2)

            def __call__(self, x_t, velocity, step, evaluate, draw):
                length = step.t - step.t_next
                middle = evaluate(x_t - velocity * length / 2, step.t - length / 2)
                return StepResult(x_t - middle * length, step.t_next, middle)

    It is used as ``Sampler(solver=Midpoint())``.
    """

    def times(self, step: Step) -> tuple[float, ...]:
        """Times of the model evaluations in ``step``, before doubling by guidance; by default one, at its start."""
        return (step.t,)

    @abstractmethod
    def __call__(
        self, x_t: Latents, velocity: Latents, step: Step, evaluate: Evaluate, draw: NoiseSource | None
    ) -> StepResult:
        """Take one step.

        Args:
            x_t: latents at ``step.t``.
            velocity: guided velocity at ``x_t`` and ``step.t``.
            step: the step.
            evaluate: further evaluations of the velocity; override :meth:`times` if it is used.
            draw: fresh noise; ``None`` if the caller has none.
        """


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """``x_t - (t - t_next) * velocity``. One evaluation a step (upstream ``ode``, ``euler``)."""

    def __call__(
        self, x_t: Latents, velocity: Latents, step: Step, evaluate: Evaluate, draw: NoiseSource | None
    ) -> StepResult:
        return StepResult(x_t - velocity * (step.t - step.t_next), step.t_next, velocity)


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """An Euler step with the mean of the velocities at both ends. Two evaluations a step.

    Source: upstream ``sampler_mode`` ``heun``.
    """

    def times(self, step: Step) -> tuple[float, ...]:
        return (step.t, step.t_next)

    def __call__(
        self, x_t: Latents, velocity: Latents, step: Step, evaluate: Evaluate, draw: NoiseSource | None
    ) -> StepResult:
        length = step.t - step.t_next
        mean = (velocity + evaluate(x_t - velocity * length, step.t_next)) / 2
        return StepResult(x_t - mean * length, step.t_next, mean)


class Renoise(Enum):
    """Noise level after an SDE step, see :class:`SDE`."""

    linear = "linear"
    schedule = "schedule"


@dataclass(frozen=True, kw_only=True)
class SDE(Solver):
    """Predicts the data and adds fresh noise. One evaluation a step (upstream ``sde``).

    ``renoise=linear`` goes to level ``1 - (index + 1) / count``, which ignores shift and custom times, as upstream's
    base and SFT files do; ``schedule`` goes to the schedule's next time, as its turbo files do.

    Args:
        renoise: noise level after a step, ``linear`` in the steps or that of the ``schedule``.
    """

    renoise: Renoise = Renoise.linear

    def __post_init__(self) -> None:
        object.__setattr__(self, "renoise", Renoise(self.renoise))

    def __call__(
        self, x_t: Latents, velocity: Latents, step: Step, evaluate: Evaluate, draw: NoiseSource | None
    ) -> StepResult:
        level = 1 - (step.index + 1) / step.count if self.renoise is Renoise.linear else step.t_next
        clean = clean_estimate(x_t, velocity, step.t)
        if level == 0:
            return StepResult(clean, 0.0, velocity)
        if draw is None:
            raise ValueError("solver=sde: needs fresh noise at every step; pass draw=SongNoise(...), or use Euler()")
        return StepResult(noised(clean, draw().to(clean), level), level, velocity)
