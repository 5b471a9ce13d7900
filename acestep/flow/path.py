"""The straight path between data and noise, and its direction: t = 1 is noise, t = 0 is data.

Fixed here once for training, solvers and guidance. Source: Liu et al., "Flow Straight and Fast" (rectified flow),
with upstream's direction (``modeling_acestep_v15_xl_base.py``, ``generate_audio`` and ``training_losses``).
``t`` is a number or one number per song.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Time = float | Float[Tensor, " b"]


def noised(x0: Float[Tensor, "b t c"], noise: Float[Tensor, "b t c"], t: Time) -> Float[Tensor, "b t c"]:
    """The point at time ``t``: ``(1 - t) * x0 + t * noise``."""
    t = _per_song(t)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Float[Tensor, "b t c"], noise: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
    """The velocity of the path, which is the same at every ``t``: ``noise - x0``."""
    return noise - x0


def clean_estimate(x_t: Float[Tensor, "b t c"], velocity: Float[Tensor, "b t c"], t: Time) -> Float[Tensor, "b t c"]:
    """The data that ``velocity`` at ``x_t`` points to: ``x_t - t * velocity``."""
    return x_t - _per_song(t) * velocity


def _per_song(t: Time) -> float | Tensor:
    return t if isinstance(t, float | int) else t.reshape(-1, 1, 1)
