"""Editing a song by its two flows, without inverting it: what the source's prompt would do, against the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.flow.corrections import NormClamp, VelocityEMA
from acestep.flow.guidance import APG, Guidance, Guided, GuidedField, Momentum
from acestep.flow.noise import NoiseSource
from acestep.flow.path import noised
from acestep.flow.sampler import OnStep
from acestep.flow.schedule import Linear, Schedule
from acestep.flow.solvers import Step, steps_between
from acestep.types import Conditions, VelocityField


@dataclass(frozen=True, kw_only=True)
class FlowEdit:
    """From a source's latents to those of the same music under another prompt.

    Within the window of steps, the edit moves by the difference of both velocities, averaged over ``draws`` of noise;
    steps before it are skipped, after it the target's flow alone is followed. Euler steps; no wavelet correction.
    Source: Kulikov et al. 2024; upstream ``flowedit_generate_audio``, whose defaults these are.

    Attributes:
        schedule: The times to visit; closed with 0 where it is open.
        guidance: Applied to both velocities, each with its own memory.
        clamp: Limit of each velocity's norm, draw by draw.
        smoothing: Running average of each velocity, step by step.
        n_min: Share of the steps after which the window opens.
        n_max: Share of the steps after which it closes.
        draws: Noise draws to average over, within the window.
    """

    schedule: Schedule = field(default_factory=lambda: Linear(steps=60))
    guidance: Guidance = field(default_factory=lambda: APG(scale=15.0))
    clamp: NormClamp = field(default_factory=NormClamp)
    smoothing: VelocityEMA = field(default_factory=VelocityEMA)
    n_min: float = 0.0
    n_max: float = 1.0
    draws: int = 1

    def __post_init__(self) -> None:
        """Refuse windows that close before they open, and averages over nothing."""
        if not 0 <= self.n_min <= self.n_max <= 1:
            raise ValueError(f"edit.n_min={self.n_min}, edit.n_max={self.n_max}: need 0 <= n_min <= n_max <= 1")
        if self.draws < 1:
            raise ValueError(f"edit.draws={self.draws}: need >= 1")

    @property
    def evaluations(self) -> int:
        """Model evaluations per song: two a draw in the window, one a step after it, double under guidance."""
        window, rest = self._phases()
        cost = [2 * self.draws * self._cost(step) for step in window] + [self._cost(step) for step in rest]
        return sum(cost)

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        source: Float[Tensor, "b t c"],
        conditions: Conditions,
        target: Conditions,
        draw: NoiseSource,
        null: Conditions | None = None,
        target_null: Conditions | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Edited latents.

        Args:
            velocity: The learned field.
            source: Latents of the song to edit.
            conditions: Those that describe ``source``.
            target: Those that describe the result.
            draw: Fresh noise.
            null: Null conditions beside ``conditions``; needed where guidance is active.
            target_null: Null conditions beside ``target``; needed where guidance is active.
            on_step: Told of each step before it is taken, with the edit so far and its change per unit of time.
        """
        before = _Trajectory(self, GuidedField(velocity, self.guidance, conditions, null))
        after = _Trajectory(self, GuidedField(velocity, self.guidance, target, target_null))
        window, rest = self._phases()
        x = source
        for step in window:
            looks = []
            for _ in range(self.draws):
                point = noised(source, draw().to(source), step.t)
                looks.append((before.look(point, step.t), after.look(x + point - source, step.t)))
            of_source, of_target = zip(*looks, strict=True)
            change = after.advance(of_target) - before.advance(of_source)
            if on_step:
                on_step(step, x, change)
            x = x + (step.t_next - step.t) * change
        if rest:
            x = x + noised(source, draw().to(source), rest[0].t) - source
        for step in rest:
            change = after.advance([after.look(x, step.t)])
            if on_step:
                on_step(step, x, change)
            x = x + (step.t_next - step.t) * change
        return x

    def _phases(self) -> tuple[list[Step], list[Step]]:
        times = self.schedule()
        steps = steps_between(times if times[-1] == 0 else torch.cat([times, torch.zeros(1)]))
        first, end = int(len(steps) * self.n_min), int(len(steps) * self.n_max)
        return steps[first:end], steps[end:]

    def _cost(self, step: Step) -> int:
        return 2 if self.guidance.active(step.t) else 1


@dataclass
class _Trajectory:
    """One of both flows, with what its guidance and smoothing remember."""

    edit: FlowEdit
    field: GuidedField
    momentum: Momentum = None
    previous: Tensor | None = None

    def look(self, x_t: Tensor, t: float) -> Guided:
        """The velocity at ``x_t`` and the memory it would leave; every draw of a step starts from the same memory."""
        velocity, momentum = self.field(x_t, t, self.momentum)
        return self.edit.clamp(velocity, x_t, self.field.conditions.frame_mask), momentum

    def advance(self, looks: Sequence[Guided]) -> Tensor:
        """The step's velocity, remembered: averages over the draws, smoothed once.

        Guidance memories are linear in the predictions, so their mean is the memory of the mean prediction.
        """
        momenta = [momentum for _, momentum in looks if momentum is not None]
        self.momentum = torch.stack(momenta).mean(dim=0) if momenta else None
        mean = torch.stack([velocity for velocity, _ in looks]).mean(dim=0)
        self.previous = self.edit.smoothing(mean, self.previous)
        return self.previous
