"""FlowEdit: editing a song without inversion, by the difference of the source's and the target's velocities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acestep.flow.corrections import NormClamp, VelocityEMA
from acestep.flow.guidance import APG, Guidance, GuidanceState, GuidedField, GuidedVelocity
from acestep.flow.noise import NoiseSource
from acestep.flow.path import Latents, noised
from acestep.flow.sampler import OnStep
from acestep.flow.schedule import Linear, Schedule
from acestep.flow.solvers import Step, steps_between
from acestep.types import Conditions, VelocityField


@dataclass(frozen=True, kw_only=True)
class FlowEdit:
    """From a song's latents to those of the same music under another prompt.

    Within a window of steps, the edit moves by the difference of both velocities, averaged over ``draws`` of noise;
    steps before it are skipped, and after it only the target's flow is integrated. Euler steps; no wavelet correction.
    Source: Kulikov et al. 2024; upstream ``flowedit_generate_audio`` with its defaults.

    Attributes:
        schedule: times of the steps; a final 0 is appended if missing.
        guidance: applied to both velocities, each with its own state.
        clamp: limit of each velocity's norm, for each draw.
        smoothing: moving average of each velocity over steps.
        n_min: fraction of the steps at which the window starts.
        n_max: fraction of the steps at which it ends.
        draws: noise draws to average over, within the window.
    """

    schedule: Schedule = field(default_factory=lambda: Linear(steps=60))
    guidance: Guidance = field(default_factory=lambda: APG(scale=15.0))
    clamp: NormClamp = field(default_factory=NormClamp)
    smoothing: VelocityEMA = field(default_factory=VelocityEMA)
    n_min: float = 0.0
    n_max: float = 1.0
    draws: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.n_min <= self.n_max <= 1:
            raise ValueError(f"edit.n_min={self.n_min}, edit.n_max={self.n_max}: need 0 <= n_min <= n_max <= 1")
        if self.draws < 1:
            raise ValueError(f"edit.draws={self.draws}: need >= 1")

    @property
    def evaluations(self) -> int:
        """Model evaluations per song: two a draw in the window, one a step after it, double under guidance."""
        window, rest = self._phases()
        return sum(
            cost * (2 if self.guidance.active(step.t) else 1)
            for steps, cost in ((window, 2 * self.draws), (rest, 1))
            for step in steps
        )

    @torch.no_grad()
    def __call__(
        self,
        velocity: VelocityField,
        source: Latents,
        conditions: Conditions,
        target: Conditions,
        draw: NoiseSource,
        null: Conditions | None = None,
        target_null: Conditions | None = None,
        *,
        on_step: OnStep | None = None,
    ) -> Latents:
        """Edited latents.

        Args:
            velocity: the learned field.
            source: latents of the song to edit.
            conditions: the conditions of ``source``.
            target: the conditions of the result.
            draw: fresh noise.
            null: null conditions beside ``conditions``; needed where guidance is active.
            target_null: null conditions beside ``target``; needed where guidance is active.
            on_step: called before each step with the edit so far and its change per unit of time.
        """
        source_flow = _Trajectory(self, GuidedField(velocity, self.guidance, conditions, null))
        target_flow = _Trajectory(self, GuidedField(velocity, self.guidance, target, target_null))
        window, rest = self._phases()
        x = source
        for step in window + rest:
            if step in window:
                pairs = []
                for _ in range(self.draws):
                    point = noised(source, draw().to(source), step.t)
                    pairs.append(
                        (source_flow.evaluate(point, step.t), target_flow.evaluate(x + point - source, step.t))
                    )
                of_source, of_target = zip(*pairs, strict=True)
                change = target_flow.average(of_target) - source_flow.average(of_source)
            else:
                if step is rest[0]:
                    x = x + noised(source, draw().to(source), step.t) - source
                change = target_flow.average([target_flow.evaluate(x, step.t)])
            if on_step:
                on_step(step, x, change)
            x = x + (step.t_next - step.t) * change
        return x

    def _phases(self) -> tuple[list[Step], list[Step]]:
        """The steps of the window, and those after it."""
        times = self.schedule()
        steps = steps_between(times if times[-1] == 0 else torch.cat([times, torch.zeros(1)]))
        first, end = int(len(steps) * self.n_min), int(len(steps) * self.n_max)
        return steps[first:end], steps[end:]


@dataclass
class _Trajectory:
    """One of both flows with the states of its guidance and smoothing."""

    edit: FlowEdit
    field: GuidedField
    state: GuidanceState = None
    previous: Tensor | None = None

    def evaluate(self, x_t: Tensor, t: float) -> GuidedVelocity:
        """The clamped velocity at ``x_t`` and the next guidance state; every draw of a step starts from one state."""
        velocity, state = self.field(x_t, t, self.state)
        return self.edit.clamp(velocity, x_t, self.field.conditions.frame_mask), state

    def average(self, draws: Sequence[GuidedVelocity]) -> Tensor:
        """The step's velocity: the mean over draws, smoothed; updates the states.

        Guidance states are linear in the predictions, so their mean is the state of the mean prediction.
        """
        states = [state for _, state in draws if state is not None]
        self.state = torch.stack(states).mean(dim=0) if states else None
        mean = torch.stack([velocity for velocity, _ in draws]).mean(dim=0)
        self.previous = self.edit.smoothing(mean, self.previous)
        return self.previous
