"""Corrections of the velocity before a step: its norm clamped, its course smoothed. Model evaluations: none."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

TINY = 1e-10


@dataclass(frozen=True, kw_only=True)
class NormClamp:
    """Caps each song's velocity norm at ``threshold`` times the norm of its latents. 0: off.

    Source: upstream ``velocity_norm_threshold`` (default 0; a comment there suggests 2.0).
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a negative cap."""
        if not self.threshold >= 0:
            raise ValueError(f"clamp.threshold={self.threshold}: need >= 0 (0 switches the clamp off)")

    def __call__(
        self, velocity: Float[Tensor, "b t c"], x_t: Float[Tensor, "b t c"], valid: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t c"]:
        """The velocity, shortened where it is too long. Norms run over valid frames and channels."""
        if self.threshold == 0:
            return velocity
        mask = valid[..., None]
        size = (x_t * mask).norm(dim=(1, 2), keepdim=True) + TINY
        speed = (velocity * mask).norm(dim=(1, 2), keepdim=True) + TINY
        share: Tensor = (self.threshold * size / speed).clamp(max=1)
        return velocity * share


@dataclass(frozen=True, kw_only=True)
class VelocityEMA:
    """Mixes a share ``factor`` of the previous velocity in. 0: off.

    Source: upstream ``velocity_ema_factor`` (default 0; a comment there suggests 0.1).
    """

    factor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a factor that never moves on."""
        if not 0 <= self.factor < 1:
            raise ValueError(f"smoothing.factor={self.factor}: need >= 0 (off) and < 1")

    def __call__(
        self, velocity: Float[Tensor, "b t c"], previous: Float[Tensor, "b t c"] | None
    ) -> Float[Tensor, "b t c"]:
        """The smoothed velocity; unchanged where there is no previous one."""
        if self.factor == 0 or previous is None:
            return velocity
        return (1 - self.factor) * velocity + self.factor * previous
