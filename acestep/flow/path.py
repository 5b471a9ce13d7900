"""The straight path between data and noise, and its direction: t = 1 is noise, t = 0 is data.

Defined here once for training, solvers and guidance. Source: Liu et al., "Flow Straight and Fast" (rectified flow),
with upstream's direction (``modeling_acestep_v15_xl_base.py``, ``generate_audio`` and ``training_losses``).
``t`` is a number or one number per song. Shapes in this package: B songs, T latent frames, C latent channels.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

Latents = Float[Tensor, "b t c"]
FrameMask = Bool[Tensor, "b t"]
"""True on the valid frames of each song, False on padding."""
Time = float | Float[Tensor, " b"]


def noised(x0: Latents, noise: Latents, t: Time) -> Latents:
    """The point at time ``t``: ``(1 - t) * x0 + t * noise``."""
    t = _per_song(t)
    return (1 - t) * x0 + t * noise


def velocity_target(x0: Latents, noise: Latents) -> Latents:
    """The velocity of the path, which is the same at every ``t``: ``noise - x0``."""
    return noise - x0


def clean_estimate(x_t: Latents, velocity: Latents, t: Time) -> Latents:
    """The data predicted by ``velocity`` at ``x_t``: ``x_t - t * velocity``."""
    return x_t - _per_song(t) * velocity


def _per_song(t: Time) -> float | Tensor:
    return t if isinstance(t, float | int) else t.reshape(-1, 1, 1)
