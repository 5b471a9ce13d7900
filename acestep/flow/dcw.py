"""Wavelet correction of the latents after a step ("DCW", arXiv 2604.16044). Model evaluations: none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

from acestep.flow.wavelets import low_band, scaling_filter


class Correction(Protocol):
    """Changes the latents after a step."""

    def __call__(
        self, x: Float[Tensor, "b t c"], clean: Float[Tensor, "b t c"], t: float, valid: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t c"]:
        """Corrected latents, from those after the step, the data estimated at its start, and the start's ``t``."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoCorrection:
    """Leaves the latents as the solver made them."""

    def __call__(
        self, x: Float[Tensor, "b t c"], clean: Float[Tensor, "b t c"], t: float, valid: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t c"]:
        """``x``."""
        return x


class Band(Enum):
    """Which part of the difference is amplified."""

    low = "low"
    high = "high"
    double = "double"
    pix = "pix"


@dataclass(frozen=True, kw_only=True)
class DCW:
    """Pushes the latents away from the estimated data, low band early and high band late.

    ``low``: the low band by ``t * scale``. ``high``: the high band by ``(1 - t) * scale``. ``double``: low by
    ``t * scale``, high by ``(1 - t) * high_scale``. ``pix``: everything by ``scale``. ``wavelet`` names an orthogonal
    filter (``haar``, ``db2``, ``sym8``, ...); one level along time, zero-padded.

    The push does not shrink with the step size, so defaults tuned for 8 steps of turbo harm 50 steps of SFT (unit
    Gaussian toy: the low band ends with a standard deviation of 1.69 instead of 1). Source: upstream
    ``DCWCorrector``; its defaults are ours, but ``Sampler`` leaves the correction off.
    """

    mode: Band = Band.double
    scale: float = 0.05
    high_scale: float = 0.02
    wavelet: str = "haar"

    def __post_init__(self) -> None:
        """Accept the mode's name; refuse unknown wavelets at once rather than after the first step."""
        object.__setattr__(self, "mode", Band(self.mode))
        scaling_filter(self.wavelet)

    def __call__(
        self, x: Float[Tensor, "b t c"], clean: Float[Tensor, "b t c"], t: float, valid: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b t c"]:
        """Corrected latents. The transform runs in float32; it is linear, so only the difference goes through it."""
        difference = (x - clean).float() * valid[..., None]
        low_weight, high_weight = self._weights(t)
        push = high_weight * difference
        if low_weight != high_weight:
            push = push + (low_weight - high_weight) * low_band(difference, self.wavelet)
        return (x.float() + push).to(x.dtype)

    def _weights(self, t: float) -> tuple[float, float]:
        return {
            Band.low: (t * self.scale, 0.0),
            Band.high: (0.0, (1 - t) * self.scale),
            Band.double: (t * self.scale, (1 - t) * self.high_scale),
            Band.pix: (self.scale, self.scale),
        }[self.mode]
