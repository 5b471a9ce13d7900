"""Learning-rate schedules as values: the factor on the peak learning rate at a step of all steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class _Warmup(ABC):
    """A schedule that starts with a linear warm-up.

    Args:
        warmup: steps of the linear rise from 0 to the peak.
    """

    warmup: int = 100

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"lr.warmup={self.warmup}: need >= 0 steps")

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """Factor on the peak learning rate at ``step`` of ``steps``."""


@dataclass(frozen=True, kw_only=True)
class _WarmupDecay(_Warmup):
    """Linear warm-up, then a decay to ``floor`` times the peak at the last step.

    Args:
        floor: share of the peak that is left at the end.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"lr.floor={self.floor:g}: need 0 <= floor <= 1, a share of optimizer.lr")

    def __call__(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.decayed(min(1.0, (step - self.warmup) / max(1, steps - self.warmup)))

    def decayed(self, progress: float) -> float:
        """The factor at a share ``progress`` of the decay: linear, unless a subclass differs."""
        return 1.0 - (1.0 - self.floor) * progress


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(_WarmupDecay):
    """Linear warm-up, then half a cosine down to ``floor`` times the peak."""

    def decayed(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class WarmupLinear(_WarmupDecay):
    """Linear warm-up, then linear down to ``floor`` times the peak."""


@dataclass(frozen=True, kw_only=True)
class WarmupConstant(_Warmup):
    """Linear warm-up, then the peak."""

    def __call__(self, step: int, steps: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(_WarmupDecay):
    """Linear warm-up, the peak, then linear down over the last ``decay`` of all steps (Hu et al. 2024, MiniCPM).

    The stable part can be prolonged: a longer run is the same up to where the shorter one began to decay.

    Args:
        decay: share of all steps over which the learning rate falls.
    """

    decay: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"lr.decay={self.decay:g}: need above 0 to 1, a share of all steps")

    def __call__(self, step: int, steps: int) -> float:
        last = max(1.0, self.decay * steps)
        progress = min(1.0, max(0.0, (step - (steps - last)) / last))
        return min(1.0, (step + 1) / max(1, self.warmup)) * self.decayed(progress)


@dataclass(frozen=True, kw_only=True)
class WarmupInverseRoot(_Warmup):
    """Linear warm-up, then falling as one over the square root of the step; independent of the number of steps."""

    def __call__(self, step: int, steps: int) -> float:
        warmup = max(1, self.warmup)
        return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
