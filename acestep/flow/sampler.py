"""The sampling loop: for each step of the schedule velocity, guidance, clamp, smoothing, solver, correction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acestep.flow.corrections import NormClamp, VelocityEMA
from acestep.flow.dcw import DCW, Correction, NoCorrection
from acestep.flow.guidance import APG, Guidance, GuidedField, NoGuidance
from acestep.flow.noise import NoiseSource
from acestep.flow.path import Latents, clean_estimate
from acestep.flow.schedule import Linear, Schedule, Turbo
from acestep.flow.solvers import Euler, Solver, Step, StepResult, steps_between
from acestep.flow.tasks import SamplerTask
from acestep.types import Conditions, VelocityField

OnStep = Callable[[Step, Latents, Latents], None]
"""Callback with the step, the latents before it, and the velocity there (see ``path.clean_estimate``)."""


@dataclass(frozen=True)
class Sampler:
    """From noise to latents.

    The default is for XL SFT: 50 equal Euler steps, APG of scale 7, no wavelet correction. The order within a step is
    upstream's: velocity, guidance, norm clamp, smoothing, solver, correction, repaint injection. Every part can be a
    class of the user's own, see :class:`Guidance`, :class:`Solver`, :class:`Schedule` and :class:`Correction`.

    Attributes:
        schedule: times of the steps.
        solver: integration of one step.
        guidance: combination of conditional and null predictions.
        clamp: limit of the velocity's norm.
        smoothing: moving average of the velocity over steps.
        correction: change of the latents after each step.
        clean_last: whether the last step goes straight to the clean estimate, without second evaluation, fresh noise
            or injection: what turbo models are distilled for (upstream ``xl_turbo``).
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
        """For turbo models: 8 steps of shift 3, no guidance, the correction that is tuned on them.

        Source: upstream ``xl_turbo`` model file, its defaults.
        """
        return cls(schedule=Turbo(), guidance=NoGuidance(), correction=DCW(), clean_last=True)

    @property
    def evaluations(self) -> int:
        """Model evaluations per song of a generation without a task, a doubled batch counting twice."""
        times = [t for step in steps_between(self.schedule()) for t in self._solver(step).times(step)]
        return sum(2 if self.guidance.active(t) else 1 for t in times)

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        noise: Latents,
        conditions: Conditions,
        null: Conditions | None = None,
        *,
        task: SamplerTask | None = None,
        draw: NoiseSource | None = None,
        on_step: OnStep | None = None,
    ) -> Latents:
        """Latents of the songs described by ``conditions``.

        Args:
            velocity: the learned field.
            noise: standard normal latents to start from, in the dtype to integrate in (float32 if memory allows).
            conditions: the songs' conditions.
            null: the same with the null embedding; needed where guidance is active.
            task: cover start, condition switch or repainting.
            draw: fresh noise, for stochastic solvers.
            on_step: called before each step.
        """
        task = task or SamplerTask()
        x, times = task.start(noise, self.schedule()) if task.start else (noise, self.schedule())
        guided_field = GuidedField(velocity, self.guidance, conditions, null)
        state = previous = None
        for step in steps_between(times):
            if task.switch and task.switch.switches_at(step.index, step.count):
                guided_field = GuidedField(velocity, self.guidance, task.switch.conditions, task.switch.null)
            guided, state = guided_field(x, step.t, state)
            v = self._clamp_and_smooth(guided, x, previous, conditions)
            if on_step:
                on_step(step, x, v)
            result = self._step(x, v, step, guided_field, draw)
            previous = result.velocity
            x = self.correction(result.latents, clean_estimate(x, v, step.t), step.t, conditions.frame_mask)
            if task.repaint and task.repaint.injects_after(step.index, step.count) and not self._is_clean(step):
                x = task.repaint.inject(x, noise, result.t)
        return task.repaint.blend(x) if task.repaint and task.repaint.blends else x

    def _clamp_and_smooth(self, velocity: Tensor, x_t: Tensor, previous: Tensor | None, given: Conditions) -> Tensor:
        return self.smoothing(self.clamp(velocity, x_t, given.frame_mask), previous)

    def _step(self, x: Tensor, v: Tensor, step: Step, guided: GuidedField, draw: NoiseSource | None) -> StepResult:
        def evaluate(x_t: Tensor, t: float) -> Tensor:
            return self._clamp_and_smooth(guided.correct(x_t, t), x_t, v, guided.conditions)

        return self._solver(step)(x, v, step, evaluate, draw)

    def _solver(self, step: Step) -> Solver:
        return Euler() if self._is_clean(step) else self.solver

    def _is_clean(self, step: Step) -> bool:
        return self.clean_last and step.index == step.count - 1
