"""Learning-rate schedules as values: the share of the peak at a step of all steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


def _check_warmup(warmup: int) -> None:
    if warmup < 0:
        raise ValueError(f"lr.warmup={warmup}: need >= 0 steps")


def _check_floor(floor: float) -> None:
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"lr.floor={floor:g}: need 0 <= floor <= 1, a share of optimizer.lr")


@dataclass(frozen=True, kw_only=True)
class _WarmupFall(ABC):
    """Linear from 0 to the peak over ``warmup`` steps, then a fall to ``floor`` times the peak at the last step."""

    warmup: int = 100
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        _check_floor(self.floor)

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at ``step`` of ``steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self._fallen(min(1.0, (step - self.warmup) / max(1, steps - self.warmup)))

    @abstractmethod
    def _fallen(self, passed: float) -> float:
        """Share of the peak when a share ``passed`` of the fall is over."""


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(_WarmupFall):
    """Linear from 0 to the peak over ``warmup`` steps, then half a cosine down to ``floor`` times the peak."""

    def _fallen(self, passed: float) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * passed))


@dataclass(frozen=True, kw_only=True)
class WarmupLinear(_WarmupFall):
    """Linear from 0 to the peak over ``warmup`` steps, then linear down to ``floor`` times the peak."""

    def _fallen(self, passed: float) -> float:
        return 1.0 - (1.0 - self.floor) * passed


@dataclass(frozen=True, kw_only=True)
class WarmupConstant:
    """Linear from 0 to the peak over ``warmup`` steps, then the peak."""

    warmup: int = 100

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at ``step``."""
        return min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """Linear to the peak, the peak, then linear down over the last ``decay`` of all steps (Hu et al. 2024, MiniCPM).

    The stable part can be prolonged: a longer run is the same up to where the shorter one began to decay.
    """

    warmup: int = 100
    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        _check_floor(self.floor)
        if not 0.0 < self.decay <= 1.0:
            raise ValueError(f"lr.decay={self.decay:g}: need above 0 to 1, a share of all steps")

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at ``step`` of ``steps``."""
        last = max(1.0, self.decay * steps)
        passed = min(1.0, max(0.0, (step - (steps - last)) / last))
        return min(1.0, (step + 1) / max(1, self.warmup)) * (1.0 - (1.0 - self.floor) * passed)


@dataclass(frozen=True, kw_only=True)
class WarmupInverseRoot:
    """Linear to the peak over ``warmup`` steps, then falling as one over the root of the step; needs no end."""

    warmup: int = 100

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def __call__(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at ``step``."""
        warmup = max(1, self.warmup)
        return min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
