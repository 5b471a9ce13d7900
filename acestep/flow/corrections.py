"""Changes of the velocity before a solver step: norm clamp and smoothing. No model evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from acestep.flow.path import FrameMask, Latents

EPSILON = 1e-10


@dataclass(frozen=True, kw_only=True)
class NormClamp:
    """Limits each song's velocity norm to ``threshold`` times the norm of its latents. 0: off.

    Source: upstream ``velocity_norm_threshold`` (default 0; a comment there suggests 2.0).

    Args:
        threshold: largest norm of the velocity, as a multiple of the norm of the latents; 0 switches the clamp off.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"clamp.threshold={self.threshold}: need >= 0 (0 switches the clamp off)")

    def __call__(self, velocity: Latents, x_t: Latents, valid: FrameMask) -> Latents:
        """The clamped velocity. Norms are over valid frames and channels."""
        if self.threshold == 0:
            return velocity
        mask = valid[..., None]
        latent_norm = (x_t * mask).norm(dim=(1, 2), keepdim=True) + EPSILON
        velocity_norm = (velocity * mask).norm(dim=(1, 2), keepdim=True) + EPSILON
        factor: Tensor = (self.threshold * latent_norm / velocity_norm).clamp(max=1)
        return velocity * factor


@dataclass(frozen=True, kw_only=True)
class VelocityEMA:
    """Exponential moving average of the velocity over steps, with weight ``factor`` on the previous one. 0: off.

    Source: upstream ``velocity_ema_factor`` (default 0; a comment there suggests 0.1).

    Args:
        factor: weight of the previous velocity, below 1; 0 switches the average off.
    """

    factor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1:
            raise ValueError(f"smoothing.factor={self.factor}: need >= 0 (off) and < 1")

    def __call__(self, velocity: Latents, previous: Latents | None) -> Latents:
        """The smoothed velocity; unchanged in the first step, where ``previous`` is ``None``."""
        if self.factor == 0 or previous is None:
            return velocity
        return (1 - self.factor) * velocity + self.factor * previous
