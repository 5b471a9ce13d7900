"""Guidance: how a conditional and a null prediction become one velocity.

A guidance rule is frozen; its state between steps is passed in and returned, so that one rule serves many generations
at once. Guidance costs a second model evaluation at each time where it is active. Reductions over time see valid
frames only, so that a song's result does not depend on its batch's padding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from acestep.flow.path import FrameMask, Latents, clean_estimate
from acestep.types import Conditions, PairField, VelocityField


@dataclass(frozen=True)
class Predictions:
    """Both velocities at ``x_t`` and time ``t``; ``valid`` is True on frames that are not padding."""

    conditional: Latents
    null: Latents
    x_t: Latents
    t: float
    valid: FrameMask


GuidanceState = Tensor | None
"""State of a rule between steps, such as a momentum; ``None`` before the first."""
GuidedVelocity = tuple[Tensor, GuidanceState]
"""The velocity, and the state for the next step."""


class Guidance(ABC):
    """A rule that combines both predictions.

    To add a rule, subclass and implement ``__call__``::

        @dataclass(frozen=True, kw_only=True)
        class LateCFG(Guidance):
            scale: float = 4.0

            def active(self, t):
                return t < 0.5

            def __call__(self, predictions, state=None):
                difference = predictions.conditional - predictions.null
                return predictions.null + self.scale * difference, state

        Sampler(guidance=LateCFG())

    A state, if there is one, is a tensor that is linear in the predictions: ``FlowEdit`` averages it over noise draws.
    """

    def active(self, t: float) -> bool:
        """Whether the null prediction is needed at time ``t``, and the rule called; by default always."""
        return True

    @property
    def corrector(self) -> Guidance:
        """The rule for further evaluations within one step (Heun), which keep no state; by default this one."""
        return self

    @abstractmethod
    def __call__(self, predictions: Predictions, state: GuidanceState = None) -> GuidedVelocity:
        """The guided velocity and the state for the next step."""


@dataclass(frozen=True, kw_only=True)
class NoGuidance(Guidance):
    """The conditional prediction. One evaluation per time."""

    def active(self, t: float) -> bool:
        return False

    def __call__(self, predictions: Predictions, state: GuidanceState = None) -> GuidedVelocity:
        return predictions.conditional, state


@dataclass(frozen=True, kw_only=True)
class ScaledGuidance(Guidance):
    """A rule with a scale, active for ``t_min <= t <= t_max``, inclusive; t = 1 is noise.

    Args:
        scale: guidance scale, at least 1; 1 switches guidance off.
        t_min: smallest time t at which guidance is active.
        t_max: largest time t at which guidance is active, t = 1 being noise.
    """

    scale: float = 7.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if not (self.scale >= 1 and math.isfinite(self.scale)):
            raise ValueError(f"guidance.scale={self.scale}: need >= 1 (1 switches guidance off)")
        if not 0 <= self.t_min <= self.t_max <= 1:
            raise ValueError(f"guidance.t_min={self.t_min}, guidance.t_max={self.t_max}: need 0 <= t_min <= t_max <= 1")

    def active(self, t: float) -> bool:
        """Whether the scale exceeds 1 and ``t`` is in the interval, compared in float32 as schedules are."""
        low, at, high = torch.tensor([self.t_min, t, self.t_max]).tolist()
        return self.scale > 1 and low <= at <= high


@dataclass(frozen=True, kw_only=True)
class CFG(ScaledGuidance):
    """Classifier-free guidance, ``null + scale * (conditional - null)``. Two evaluations per active time.

    Source: Ho and Salimans 2022; upstream ``cfg_forward``.
    """

    def __call__(self, predictions: Predictions, state: GuidanceState = None) -> GuidedVelocity:
        return predictions.null + self.scale * (predictions.conditional - predictions.null), state


class NormAxis(Enum):
    """Dimension of norms and projections."""

    time = "time"
    channels = "channels"

    @property
    def dim(self) -> int:
        """The dimension of latents (B, T, C)."""
        return 1 if self is NormAxis.time else 2


@dataclass(frozen=True, kw_only=True)
class APG(ScaledGuidance):
    """Adaptive projected guidance: CFG without the component of the update parallel to the conditional prediction.

    The difference of the predictions gets a momentum (negative: it damps what persists over steps), its norm is
    limited to ``norm_threshold`` (0: off), and its component parallel to the conditional prediction is scaled by
    ``eta``. With norms over time the limit holds for a whole song per channel, so the same scale has less effect on
    long songs. Two evaluations per active time. Source: Sadat et al. 2024; upstream ``apg_forward`` with its defaults.

    Args:
        momentum: weight of the running average of earlier differences, between -1 and 1; below 0 it damps.
        norm_threshold: largest norm of the difference; 0 for no limit.
        eta: factor on the component parallel to the conditional prediction.
        axis: axis of norms and projections, ``time`` or ``channels``.
    """

    momentum: float = -0.75
    norm_threshold: float = 2.5
    eta: float = 0.0
    axis: NormAxis = NormAxis.time

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "axis", NormAxis(self.axis))
        if not -1 < self.momentum < 1:
            raise ValueError(f"guidance.momentum={self.momentum}: need between -1 and 1 (0 switches it off)")
        if not self.norm_threshold >= 0:
            raise ValueError(f"guidance.norm_threshold={self.norm_threshold}: need >= 0 (0 switches the cap off)")

    @property
    def corrector(self) -> CFG:
        """CFG of the same scale and interval: momentum must not advance twice in one step (upstream Heun)."""
        return CFG(scale=self.scale, t_min=self.t_min, t_max=self.t_max)

    def __call__(self, predictions: Predictions, state: GuidanceState = None) -> GuidedVelocity:
        """The guided velocity, and the running average of differences as state."""
        valid = predictions.valid[..., None]
        average = predictions.conditional - predictions.null
        if state is not None:
            average = average + self.momentum * state
        push = average * valid
        if self.norm_threshold > 0:
            norm = push.norm(dim=self.axis.dim, keepdim=True)
            push = push * (self.norm_threshold / norm).clamp(max=1)  # 0 / 0 cannot occur: the threshold is positive
        # In float64, as upstream: the two components nearly cancel where update and prediction align.
        push64, unit = push.double(), (predictions.conditional * valid).double()
        unit = functional.normalize(unit, dim=self.axis.dim)
        parallel = (push64 * unit).sum(dim=self.axis.dim, keepdim=True) * unit
        update = (push64 - parallel).to(push.dtype) + self.eta * parallel.to(push.dtype)
        return predictions.conditional + (self.scale - 1) * update, average


@dataclass(frozen=True, kw_only=True)
class ADG(ScaledGuidance):
    """Angle domain guidance: rotates the clean estimate away from the null one, frame by frame.

    The angle between both estimates is multiplied by the scale (less one) and limited to ``max_angle`` radians
    (infinity: off); ``restore_norm`` rescales the result to the conditional estimate's norm over time. At t = 0,
    where there is nothing to estimate, it is plain CFG. Two evaluations per active time. Source: upstream
    ``adg_forward``; ``ADG(max_angle=3.14 / 3, restore_norm=True)`` is ``adg_w_norm_forward`` and
    ``ADG(max_angle=inf)`` is ``adg_wo_clip_forward``.

    Args:
        max_angle: largest angle of the rotation in radians; ``inf`` for no limit.
        restore_norm: whether the result gets the norm of the conditional estimate.
    """

    max_angle: float = 3.14 / 6
    restore_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.max_angle > 0:
            raise ValueError(f"guidance.max_angle={self.max_angle}: need > 0 radians (.inf switches the cap off)")

    def __call__(self, predictions: Predictions, state: GuidanceState = None) -> GuidedVelocity:
        x_t, t = predictions.x_t, predictions.t
        if t == 0:
            return CFG(scale=self.scale)(predictions, state)
        weight = self.scale - 1 + 1e-3
        conditional = clean_estimate(x_t, predictions.conditional, t)
        null = clean_estimate(x_t, predictions.null, t)
        angle = _angle(conditional, null)
        rotated = (weight * angle).clamp(-self.max_angle, self.max_angle)
        difference = conditional - null
        along = (difference * null).sum(-1, keepdim=True) / ((null * null).sum(-1, keepdim=True) + 1e-8)
        across = difference - along * null
        sine = angle.sin()
        ratio = torch.where(sine > 1e-3, rotated.sin() / sine, weight).to(across.dtype)
        clean = rotated.cos().to(across.dtype) * conditional + across * ratio
        if self.restore_norm:
            valid = predictions.valid[..., None]
            clean = clean * (conditional * valid).norm(dim=1, keepdim=True) / (clean * valid).norm(dim=1, keepdim=True)
        return (x_t - clean) / t, state


def _angle(a: Latents, b: Latents) -> Float[Tensor, "b t 1"]:
    """The angle between two estimates per frame, in radians and float64, bounded away from 0 and pi."""
    cosine = functional.cosine_similarity(a.double(), b.double(), dim=-1)[..., None]
    return cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()


class GuidedField:
    """A velocity field under guidance. Where it is active, both predictions come from ``PairField.pair`` or one batch.

    Args:
        velocity: the learned field.
        guidance: the rule.
        conditions: the songs' conditions.
        null: the null conditions; needed where ``guidance`` is active.
    """

    def __init__(
        self, velocity: VelocityField, guidance: Guidance, conditions: Conditions, null: Conditions | None
    ) -> None:
        self.velocity = velocity
        self.guidance = guidance
        self.conditions = conditions
        self.null = null

    @cached_property
    def _joint(self) -> Conditions:
        """Both conditions as one batch."""
        assert self.null is not None
        return self.conditions.cat(self.null)

    def __call__(self, x_t: Latents, t: float, state: GuidanceState = None) -> GuidedVelocity:
        """The guided velocity at ``x_t``, and the rule's state."""
        return self._evaluate(self.guidance, x_t, t, state)

    def correct(self, x_t: Latents, t: float) -> Latents:
        """The guided velocity for a further evaluation within one step, without state."""
        return self._evaluate(self.guidance.corrector, x_t, t, None)[0]

    def _evaluate(self, guidance: Guidance, x_t: Tensor, t: float, state: GuidanceState) -> GuidedVelocity:
        times = torch.full((len(x_t),), t, dtype=torch.float32, device=x_t.device)
        if not guidance.active(t):
            return self.velocity(x_t, times, self.conditions).to(x_t.dtype), state
        conditional, null = (velocity.to(x_t.dtype) for velocity in self._both(x_t, times))
        return guidance(Predictions(conditional, null, x_t, t, self.conditions.frame_mask), state)

    def _both(self, x_t: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        if self.null is None:
            raise ValueError(f"guidance={self.guidance}: needs the null conditions; pass null, or use NoGuidance()")
        if isinstance(self.velocity, PairField):
            return self.velocity.pair(x_t, times, self.conditions, self.null)
        conditional, null = self.velocity(torch.cat([x_t, x_t]), torch.cat([times, times]), self._joint).chunk(2)
        return conditional, null
