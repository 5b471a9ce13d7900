"""The one loop that steps the flow: schedule, then for each step velocity, guidance, solver, corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.flow.corrections import NormClamp, VelocityEMA
from acestep.flow.dcw import DCW, Correction, NoCorrection
from acestep.flow.guidance import APG, Guidance, GuidedField, NoGuidance
from acestep.flow.noise import NoiseSource
from acestep.flow.path import clean_estimate
from acestep.flow.schedule import Linear, Schedule, Turbo
from acestep.flow.solvers import Euler, Moved, Solver, Step, steps_between
from acestep.flow.tasks import Task
from acestep.types import Conditions, VelocityField

OnStep = Callable[[Step, Float[Tensor, "b t c"], Float[Tensor, "b t c"]], None]
"""Told of each step: the step, the latents entering it, and the velocity there (see ``path.clean_estimate``)."""


@dataclass(frozen=True)
class Sampler:
    """From noise to latents.

    The default is what suits XL SFT: 50 equal Euler steps, APG of scale 7, no wavelet correction. One step, in
    upstream's order: velocity, guidance, norm clamp, smoothing, solver, correction, repaint injection.

    Attributes:
        schedule: The times to visit.
        solver: How to get from one to the next.
        guidance: How to mix conditional and null predictions.
        clamp: Limit of the velocity's norm.
        smoothing: Running average of the velocity.
        correction: Change of the latents after each step.
        clean_last: Whether the last step goes straight to the clean estimate, without second look, fresh noise or
            injection: what turbo models are distilled for (upstream ``xl_turbo``).
    """

    schedule: Schedule = field(default_factory=Linear)
    solver: Solver = field(default_factory=Euler)
    guidance: Guidance = field(default_factory=APG)
    clamp: NormClamp = field(default_factory=NormClamp)
    smoothing: VelocityEMA = field(default_factory=VelocityEMA)
    correction: Correction = field(default_factory=NoCorrection)
    clean_last: bool = False

    @classmethod
    def turbo(cls) -> Sampler:
        """What turbo models are distilled for: 8 steps of shift 3, no guidance, the correction that is tuned on them.

        Source: upstream ``xl_turbo`` model file, its defaults.
        """
        return cls(schedule=Turbo(), guidance=NoGuidance(), correction=DCW(), clean_last=True)

    @property
    def evaluations(self) -> int:
        """Model evaluations per song of a plain generation, a doubled batch counting twice."""
        times = [t for step in steps_between(self.schedule()) for t in self._solver(step).times(step)]
        return sum(2 if self.guidance.active(t) else 1 for t in times)

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        noise: Float[Tensor, "b t c"],
        conditions: Conditions,
        null: Conditions | None = None,
        *,
        task: Task | None = None,
        draw: NoiseSource | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Latents of the songs that ``conditions`` describe.

        Args:
            velocity: The learned field.
            noise: Standard normal latents to start from, in the type to integrate in (float32 unless memory forbids).
            conditions: The songs' conditions.
            null: The same with the null embedding; needed where guidance is active.
            task: A source to start from, conditions to switch to, a region to keep.
            draw: Fresh noise, for solvers that add some.
            on_step: Told of each step before it is taken.
        """
        task = task or Task()
        x, times = task.start(noise, self.schedule()) if task.start else (noise, self.schedule())
        guide = GuidedField(velocity, self.guidance, conditions, null)
        momentum = previous = None
        for step in steps_between(times):
            if task.switch and task.switch.due(step.index, step.count):
                guide = GuidedField(velocity, self.guidance, task.switch.conditions, task.switch.null)
            guided, momentum = guide(x, step.t, momentum)
            v = self.shaped(guided, x, previous, conditions)
            if on_step:
                on_step(step, x, v)
            moved = self._move(x, v, step, guide, draw)
            previous = moved.velocity
            x = self.correction(moved.latents, clean_estimate(x, v, step.t), step.t, conditions.frame_mask)
            if task.repaint and task.repaint.injects(step.index, step.count) and not self._is_clean(step):
                x = task.repaint.inject(x, noise, moved.t)
        return task.repaint.blend(x) if task.repaint and task.repaint.blends else x

    def shaped(self, velocity: Tensor, x_t: Tensor, previous: Tensor | None, conditions: Conditions) -> Tensor:
        """A guided velocity after norm clamp and smoothing."""
        return self.smoothing(self.clamp(velocity, x_t, conditions.frame_mask), previous)

    def _move(self, x: Tensor, v: Tensor, step: Step, guide: GuidedField, draw: NoiseSource | None) -> Moved:
        def corrector(x_t: Tensor, t: float) -> Tensor:
            return self.shaped(guide.correct(x_t, t), x_t, v, guide.conditions)

        return self._solver(step)(x, v, step, corrector, draw)

    def _solver(self, step: Step) -> Solver:
        return Euler() if self._is_clean(step) else self.solver

    def _is_clean(self, step: Step) -> bool:
        return self.clean_last and step.index == step.count - 1
