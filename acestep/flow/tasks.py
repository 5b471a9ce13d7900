"""What a request adds to plain generation: a source to start from, a condition to switch to, a region to keep.

These are values of one call (tensors and strengths), not settings of a sampler. None costs a model evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.flow.path import noised
from acestep.types import Conditions


@dataclass(frozen=True, kw_only=True)
class CoverStart:
    """Start from partly noised ``source`` latents instead of pure noise; the schedule is cut there.

    ``strength`` 0 starts from noise, 1 as near to the source as the schedule reaches. Source: upstream
    ``cover_noise_strength``. Raw source latents, not those that went through the 5 Hz codes.
    """

    source: Float[Tensor, "b t c"]
    strength: float = 0.0

    def __post_init__(self) -> None:
        """Refuse strengths outside [0, 1]."""
        _check_share("start.strength", self.strength)

    def __call__(
        self, noise: Float[Tensor, "b t c"], times: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, " m"]]:
        """The latents to start from and the remaining times."""
        if self.strength == 0:
            return noise, times
        first = int((times[:-1] - (1 - self.strength)).abs().argmin())
        return noised(self.source, noise, times[first].item()), times[first:]


@dataclass(frozen=True, kw_only=True)
class CoverSwitch:
    """Conditions (and their null) that take over after a share ``strength`` of the steps: a switch, not a blend.

    Source: upstream ``audio_cover_strength``: text of the text-to-music task, silence as source, same chunk mask. The
    guidance's memory carries over. 1 never switches, 0 does at once.
    """

    conditions: Conditions
    null: Conditions | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse strengths outside [0, 1]."""
        _check_share("switch.strength", self.strength)

    def due(self, index: int, count: int) -> bool:
        """Whether step ``index`` of ``count`` is the first under the new conditions."""
        return index == int(count * self.strength)


@dataclass(frozen=True, kw_only=True)
class Repaint:
    """Keep ``clean`` latents outside ``mask`` (True: generate).

    After each of the first ``injection_ratio`` of the steps, frames outside become the clean latents at the noise level
    just reached; after the last, ``crossfade_frames`` outside each border blend into the kept part. With 0 frames there
    is no blend, and what the injections left stays. Source: upstream ``_repaint_step_injection`` and
    ``_repaint_boundary_blend``.
    """

    mask: Bool[Tensor, "b t"]
    clean: Float[Tensor, "b t c"]
    injection_ratio: float = 0.5
    crossfade_frames: int = 10

    def __post_init__(self) -> None:
        """Refuse ratios outside [0, 1] and negative lengths."""
        _check_share("repaint.injection_ratio", self.injection_ratio)
        if not self.crossfade_frames >= 0:
            raise ValueError(f"repaint.crossfade_frames={self.crossfade_frames}: need >= 0 (0 skips the blend)")

    def injects(self, index: int, count: int) -> bool:
        """Whether step ``index`` of ``count`` ends with an injection (halves round to even)."""
        return index < round(self.injection_ratio * count)

    def inject(self, x: Float[Tensor, "b t c"], noise: Float[Tensor, "b t c"], t: float) -> Float[Tensor, "b t c"]:
        """``x`` inside the mask; outside, the clean latents under the generation's first ``noise`` at level ``t``."""
        return torch.where(self.mask[..., None], x, noised(self.clean, noise, t))

    @property
    def blends(self) -> bool:
        """Whether the result is cross-faded."""
        return self.crossfade_frames > 0

    def blend(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """``x`` and the clean latents, cross-faded outside the mask's borders; for where it ``blends``."""
        weight = torch.stack([_soft(row, self.crossfade_frames) for row in self.mask.cpu()]).to(x)[..., None]
        return weight * x + (1 - weight) * self.clean


@dataclass(frozen=True, kw_only=True)
class Task:
    """All that one call adds to plain generation; nothing by default."""

    start: CoverStart | None = None
    switch: CoverSwitch | None = None
    repaint: Repaint | None = None


def _soft(mask: Bool[Tensor, " t"], frames: int) -> Float[Tensor, " t"]:
    """One row's mask with linear ramps of up to ``frames`` before its first and after its last True frame."""
    weight = mask.float()
    inside = mask.nonzero().flatten().tolist()
    if not inside or len(inside) == len(mask):
        return weight
    first, end = inside[0], inside[-1] + 1
    before, after = min(frames, first), min(frames, len(mask) - end)
    weight[first - before : first] = torch.linspace(0, 1, before + 2)[1:-1]
    weight[end : end + after] = torch.linspace(1, 0, after + 2)[1:-1]
    return weight


def _check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{key}={value}: need 0 to 1")
