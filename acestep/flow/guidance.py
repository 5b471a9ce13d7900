"""How a conditional and a null prediction become one velocity.

A guidance is a frozen rule; what it remembers between steps (``momentum``) is passed in and returned, so one rule
serves many generations at once. Guidance costs a second model evaluation at each time where it is active, none
elsewhere. Reductions over time see valid frames only, so that a song's result does not depend on its batch's padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from acestep.flow.path import clean_estimate
from acestep.types import Conditions, PairField, VelocityField


@dataclass(frozen=True)
class Pair:
    """Both predictions at ``x_t``: under the songs' conditions and under the null condition."""

    conditional: Float[Tensor, "b t c"]
    null: Float[Tensor, "b t c"]
    x_t: Float[Tensor, "b t c"]
    t: float
    valid: Bool[Tensor, "b t"]


Momentum = Tensor | None
Guided = tuple[Tensor, Momentum]


class Guidance(Protocol):
    """A rule that mixes both predictions."""

    def active(self, t: float) -> bool:
        """Whether the null prediction is needed at time ``t``."""
        ...

    @property
    def corrector(self) -> Guidance:
        """The rule for a solver's second evaluation within one step."""
        ...

    def __call__(self, pair: Pair, momentum: Momentum = None) -> Guided:
        """The guided velocity, and what to remember for the next step."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoGuidance:
    """The conditional prediction as it is. One evaluation per time."""

    def active(self, t: float) -> bool:
        """Never."""
        return False

    @property
    def corrector(self) -> NoGuidance:
        """Itself."""
        return self

    def __call__(self, pair: Pair, momentum: Momentum = None) -> Guided:
        """The conditional velocity."""
        return pair.conditional, momentum


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    """A scale and the times it holds for: ``t_min <= t <= t_max``, ends included, t = 1 being noise."""

    scale: float = 7.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        """Refuse scales below 1 and empty intervals."""
        if not (self.scale >= 1 and math.isfinite(self.scale)):
            raise ValueError(f"guidance.scale={self.scale}: need >= 1 (1 switches guidance off)")
        if not 0 <= self.t_min <= self.t_max <= 1:
            raise ValueError(f"guidance.t_min={self.t_min}, guidance.t_max={self.t_max}: need 0 <= t_min <= t_max <= 1")

    def active(self, t: float) -> bool:
        """Whether the scale exceeds 1 and ``t`` lies in the interval, compared in float32 as schedules are."""
        low, at, high = torch.tensor([self.t_min, t, self.t_max]).tolist()
        return self.scale > 1 and low <= at <= high


@dataclass(frozen=True, kw_only=True)
class CFG(_Scaled):
    """Classifier-free guidance, ``null + scale * (conditional - null)``. Two evaluations per active time.

    Source: Ho and Salimans 2022; upstream ``cfg_forward``.
    """

    @property
    def corrector(self) -> CFG:
        """Itself."""
        return self

    def __call__(self, pair: Pair, momentum: Momentum = None) -> Guided:
        """The extrapolated velocity."""
        return pair.null + self.scale * (pair.conditional - pair.null), momentum


class NormAxis(Enum):
    """Along what norms and projections are taken."""

    time = "time"
    channels = "channels"

    @property
    def dim(self) -> int:
        """The dimension of latents (B, T, C)."""
        return 1 if self is NormAxis.time else 2


@dataclass(frozen=True, kw_only=True)
class APG(_Scaled):
    """Adaptive projected guidance: CFG without the part of the push that points along the prediction itself.

    The difference of the predictions runs through a momentum (negative: it damps what persists), its norm is capped at
    ``norm_threshold`` (0: no cap), and its component parallel to the conditional prediction is scaled by ``eta``. With
    norms over time the cap holds for a whole song per channel, so the same scale pushes long songs less. Two
    evaluations per active time. Source: Sadat et al. 2024; upstream ``apg_forward`` with its defaults.
    """

    momentum: float = -0.75
    norm_threshold: float = 2.5
    eta: float = 0.0
    axis: NormAxis = NormAxis.time

    def __post_init__(self) -> None:
        """Refuse a momentum that grows without bound and a negative cap."""
        super().__post_init__()
        object.__setattr__(self, "axis", NormAxis(self.axis))
        if not -1 < self.momentum < 1:
            raise ValueError(f"guidance.momentum={self.momentum}: need between -1 and 1 (0 switches it off)")
        if not self.norm_threshold >= 0:
            raise ValueError(f"guidance.norm_threshold={self.norm_threshold}: need >= 0 (0 switches the cap off)")

    @property
    def corrector(self) -> CFG:
        """Plain CFG of the same scale and interval: momentum must not advance twice in one step (upstream Heun)."""
        return CFG(scale=self.scale, t_min=self.t_min, t_max=self.t_max)

    def __call__(self, pair: Pair, momentum: Momentum = None) -> Guided:
        """The guided velocity and the running average of differences."""
        valid = pair.valid[..., None]
        average = pair.conditional - pair.null
        if momentum is not None:
            average = average + self.momentum * momentum
        push = average * valid
        if self.norm_threshold > 0:
            norm = push.norm(dim=self.axis.dim, keepdim=True)
            push = push * (self.norm_threshold / norm).clamp(max=1)  # 0 / 0 cannot occur: the threshold is positive
        # In float64, as upstream: the two parts nearly cancel where push and prediction align.
        push64, unit = push.double(), (pair.conditional * valid).double()
        unit = functional.normalize(unit, dim=self.axis.dim)
        parallel = (push64 * unit).sum(dim=self.axis.dim, keepdim=True) * unit
        update = (push64 - parallel).to(push.dtype) + self.eta * parallel.to(push.dtype)
        return pair.conditional + (self.scale - 1) * update, average


ADG_ANGLE = 3.14 / 6


@dataclass(frozen=True, kw_only=True)
class ADG(_Scaled):
    """Angle domain guidance: turns the clean estimate away from the null one, frame by frame, instead of stretching it.

    The angle between both estimates is multiplied by the scale (less one) and capped at ``max_angle`` radians
    (infinity: no cap); ``restore_norm`` rescales the result to the conditional estimate's norm over time. At t = 0,
    where there is nothing to estimate, it is plain CFG. Two evaluations per active time. Source: upstream
    ``adg_forward``; ``ADG(max_angle=3.14 / 3, restore_norm=True)`` is ``adg_w_norm_forward`` and
    ``ADG(max_angle=inf)`` is ``adg_wo_clip_forward``.
    """

    max_angle: float = ADG_ANGLE
    restore_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse a cap that is no angle."""
        super().__post_init__()
        if not self.max_angle > 0:
            raise ValueError(f"guidance.max_angle={self.max_angle}: need > 0 radians (.inf switches the cap off)")

    @property
    def corrector(self) -> ADG:
        """Itself: it remembers nothing."""
        return self

    def __call__(self, pair: Pair, momentum: Momentum = None) -> Guided:
        """The guided velocity."""
        if pair.t == 0:
            return CFG(scale=self.scale)(pair, momentum)
        weight = self.scale - 1 + 1e-3
        conditional = clean_estimate(pair.x_t, pair.conditional, pair.t)
        null = clean_estimate(pair.x_t, pair.null, pair.t)
        angle = _angle(conditional, null)
        turned = (weight * angle).clamp(-self.max_angle, self.max_angle)
        difference = conditional - null
        along = (difference * null).sum(-1, keepdim=True) / ((null * null).sum(-1, keepdim=True) + 1e-8)
        across = difference - along * null
        sine = angle.sin()
        ratio = torch.where(sine > 1e-3, turned.sin() / sine, weight).to(across.dtype)
        clean = turned.cos().to(across.dtype) * conditional + across * ratio
        if self.restore_norm:
            valid = pair.valid[..., None]
            clean = clean * (conditional * valid).norm(dim=1, keepdim=True) / (clean * valid).norm(dim=1, keepdim=True)
        return (pair.x_t - clean) / pair.t, momentum


def _angle(a: Float[Tensor, "b t c"], b: Float[Tensor, "b t c"]) -> Float[Tensor, "b t 1"]:
    """The angle between two estimates, frame by frame, in radians and float64, kept off 0 and pi."""
    cosine = functional.cosine_similarity(a.double(), b.double(), dim=-1)[..., None]
    return cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()


class GuidedField:
    """A velocity field under guidance: where that is active, a ``PairField``'s two, or a doubled batch."""

    def __init__(
        self, velocity: VelocityField, guidance: Guidance, conditions: Conditions, null: Conditions | None
    ) -> None:
        """``null`` may be left out where ``guidance`` never asks for it."""
        self.velocity = velocity
        self.guidance = guidance
        self.conditions = conditions
        self.null = null

    @cached_property
    def _joint(self) -> Conditions:
        """Both conditions as one batch, joined when first needed."""
        assert self.null is not None
        return self.conditions.cat(self.null)

    def __call__(self, x_t: Float[Tensor, "b t c"], t: float, momentum: Momentum = None) -> Guided:
        """The guided velocity at ``x_t``, and the guidance's memory."""
        return self._evaluate(self.guidance, x_t, t, momentum)

    def correct(self, x_t: Float[Tensor, "b t c"], t: float) -> Float[Tensor, "b t c"]:
        """The guided velocity for a second evaluation within one step; no memory is touched."""
        return self._evaluate(self.guidance.corrector, x_t, t, None)[0]

    def _evaluate(self, guidance: Guidance, x_t: Tensor, t: float, momentum: Momentum) -> Guided:
        times = torch.full((len(x_t),), t, dtype=torch.float32, device=x_t.device)
        if not guidance.active(t):
            return self.velocity(x_t, times, self.conditions).to(x_t.dtype), momentum
        conditional, null = (velocity.to(x_t.dtype) for velocity in self._both(x_t, times))
        return guidance(Pair(conditional, null, x_t, t, self.conditions.frame_mask), momentum)

    def _both(self, x_t: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        if self.null is None:
            raise ValueError(f"guidance={self.guidance}: needs the null conditions; pass null, or use NoGuidance()")
        if isinstance(self.velocity, PairField):
            return self.velocity.pair(x_t, times, self.conditions, self.null)
        conditional, null = self.velocity(torch.cat([x_t, x_t]), torch.cat([times, times]), self._joint).chunk(2)
        return conditional, null
