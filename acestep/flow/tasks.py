"""Per-call parts of a generation: a noised source to start from, a condition to switch to, a region to keep.

These are tensors and strengths of one call, not settings of a sampler. None costs a model evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.flow.path import FrameMask, Latents, noised
from acestep.types import Conditions


@dataclass(frozen=True, kw_only=True)
class CoverStart:
    """Start from partly noised ``source`` latents instead of pure noise, at the corresponding time of the schedule.

    ``strength`` 0 starts from noise, 1 as near to the source as the schedule allows. ``source`` are the raw latents,
    not those reconstructed from 5 Hz codes. Source: upstream ``cover_noise_strength``.
    """

    source: Latents
    strength: float = 0.0

    def __post_init__(self) -> None:
        _check_fraction("start.strength", self.strength)

    def __call__(self, noise: Latents, times: Float[Tensor, " n"]) -> tuple[Latents, Float[Tensor, " m"]]:
        """The latents to start from and the remaining times."""
        if self.strength == 0:
            return noise, times
        first = int((times[:-1] - (1 - self.strength)).abs().argmin())
        return noised(self.source, noise, times[first].item()), times[first:]


@dataclass(frozen=True, kw_only=True)
class CoverSwitch:
    """Conditions (and their null) that replace the first ones after a fraction ``strength`` of the steps.

    Source: upstream ``audio_cover_strength``: text of the text-to-music task, silence as source, same chunk mask. The
    guidance's state carries over. 1 never switches, 0 switches before the first step.
    """

    conditions: Conditions
    null: Conditions | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        _check_fraction("switch.strength", self.strength)

    def switches_at(self, index: int, count: int) -> bool:
        """Whether step ``index`` of ``count`` is the first under the new conditions."""
        return index == int(count * self.strength)


@dataclass(frozen=True, kw_only=True)
class Repaint:
    """Inpainting: keep ``clean`` latents outside ``mask`` (True: generate).

    After each of the first ``injection_ratio`` of the steps, frames outside are replaced by the clean latents at the
    noise level just reached; after the last, ``crossfade_frames`` outside each border are cross-faded into the kept
    part. With 0 frames nothing is cross-faded or restored: the result of the injections stays. Source: upstream
    ``_repaint_step_injection`` and ``_repaint_boundary_blend``.
    """

    mask: FrameMask
    clean: Latents
    injection_ratio: float = 0.5
    crossfade_frames: int = 10

    def __post_init__(self) -> None:
        _check_fraction("repaint.injection_ratio", self.injection_ratio)
        if not self.crossfade_frames >= 0:
            raise ValueError(f"repaint.crossfade_frames={self.crossfade_frames}: need >= 0 (0 skips the blend)")

    def injects_after(self, index: int, count: int) -> bool:
        """Whether step ``index`` of ``count`` ends with an injection (halves round to even)."""
        return index < round(self.injection_ratio * count)

    def inject(self, x: Latents, noise: Latents, t: float) -> Latents:
        """``x`` inside the mask; outside, the clean latents under the generation's initial ``noise`` at level ``t``."""
        return torch.where(self.mask[..., None], x, noised(self.clean, noise, t))

    @property
    def blends(self) -> bool:
        """Whether the result is cross-faded by :meth:`blend`."""
        return self.crossfade_frames > 0

    def blend(self, x: Latents) -> Latents:
        """``x`` inside the mask and clean latents outside, cross-faded outside the mask's borders."""
        weight = torch.stack([_crossfade(row, self.crossfade_frames) for row in self.mask.cpu()]).to(x)[..., None]
        return weight * x + (1 - weight) * self.clean


@dataclass(frozen=True, kw_only=True)
class SamplerTask:
    """What one call adds to plain generation; nothing by default."""

    start: CoverStart | None = None
    switch: CoverSwitch | None = None
    repaint: Repaint | None = None


def _crossfade(mask: Bool[Tensor, " t"], frames: int) -> Float[Tensor, " t"]:
    """One song's mask as weights, with linear ramps of up to ``frames`` before its first and after its last frame."""
    weight = mask.float()
    inside = mask.nonzero().flatten().tolist()
    if not inside or len(inside) == len(mask):
        return weight
    first, end = inside[0], inside[-1] + 1
    before, after = min(frames, first), min(frames, len(mask) - end)
    weight[first - before : first] = torch.linspace(0, 1, before + 2)[1:-1]
    weight[end : end + after] = torch.linspace(1, 0, after + 2)[1:-1]
    return weight


def _check_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{key}={value}: need 0 to 1")
