"""Data types that packages exchange: conditioning inputs, conditions, protocols of networks. Reads no files.

Shape legend: B songs, T latent frames (25 Hz), L condition tokens, C latent channels (64), D text width,
E condition width, N references, S samples, A audio channels (2).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acestep.lazy import lazy_attributes

# The former address of these classes, for one release.
__getattr__ = lazy_attributes(__name__, dict.fromkeys(("AdapterUse", "Request", "Song"), "acestep.songs"))


@dataclass(frozen=True)
class ConditionInputs:
    """Inputs of the condition encoder: frozen text features and latents, batched, before any trained layer.

    ``references`` are concatenated over the batch; ``reference_index`` is the song of each. ``hints`` are 25 Hz
    latents from audio codes; where ``is_cover``, they (or the tokenizer's reconstruction) replace ``source``.
    """

    text: Float[Tensor, "b lt d"]
    text_mask: Bool[Tensor, "b lt"]
    lyrics: Float[Tensor, "b ll d"]
    lyrics_mask: Bool[Tensor, "b ll"]
    references: Float[Tensor, "n tr c"]
    reference_index: Int[Tensor, " n"]
    source: Float[Tensor, "b t c"]
    chunk_mask: Float[Tensor, "b t c"]
    is_cover: Bool[Tensor, " b"]
    frame_mask: Bool[Tensor, "b t"]
    hints: Float[Tensor, "b th c"] | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> ConditionInputs:
        """A copy on ``device``; floating-point tensors are also cast to ``dtype``."""
        return _to_device(self, device, dtype)


@dataclass(frozen=True)
class Conditions:
    """Conditions of the DiT.

    ``states`` is the packed sequence lyrics, timbre, text, then padding; ``mask`` is True on its valid rows;
    ``context`` is source latents and chunk mask, concatenated; ``frame_mask`` is False on padded latent frames.
    """

    states: Float[Tensor, "b l e"]
    mask: Bool[Tensor, "b l"]
    context: Float[Tensor, "b t c2"]
    frame_mask: Bool[Tensor, "b t"]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditions:
        """A copy on ``device``; floating-point tensors are also cast to ``dtype``."""
        return _to_device(self, device, dtype)

    def cat(self, other: Conditions) -> Conditions:
        """Both batches concatenated, ``self`` first. Sequence lengths must be equal."""
        return Conditions(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def where(self, rows: Bool[Tensor, " b"], other: Conditions) -> Conditions:
        """``other`` in the songs where ``rows`` is True, ``self`` in the others."""
        return replace(
            self,
            states=torch.where(rows[:, None, None], other.states, self.states),
            mask=torch.where(rows[:, None], other.mask, self.mask),
            context=torch.where(rows[:, None, None], other.context, self.context),
        )


class VelocityField(Protocol):
    """Velocity (noise minus data) at noisy latents ``x_t`` and times ``t`` in [0, 1], where 1 is noise."""

    def __call__(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions
    ) -> Float[Tensor, "b t c"]: ...


@runtime_checkable
class PairField(VelocityField, Protocol):
    """A velocity field that computes both predictions of guidance at less than twice the cost of one."""

    def pair(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions, null: Conditions
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """The velocity of each song under ``conditions`` and under ``null``."""
        ...


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian posterior of an autoencoder over latents, frames first."""

    mean: Float[Tensor, "b t c"]
    scale: Float[Tensor, "b t c"]

    def sample(self, noise: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """The sample for standard normal ``noise`` (reparameterisation)."""
        return self.mean + self.scale * noise


class Autoencoder(Protocol):
    """Waveforms to latents and back. One latent frame of ``latent_channels`` channels is ``hop`` samples."""

    sample_rate: int
    hop: int
    audio_channels: int
    latent_channels: int

    def encode(self, audio: Float[Tensor, "b a s"]) -> Posterior:
        """Posterior of the latents of waveforms in [-1, 1]."""
        ...

    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveforms of latents."""
        ...


@runtime_checkable
class PositionalDecoder(Protocol):
    """An autoencoder whose decoder depends on a frame's position in the song."""

    def decode_at(self, latents: Float[Tensor, "b t c"], first: int) -> Float[Tensor, "b a s"]:
        """Waveforms of latents that start at frame ``first`` of the songs."""
        ...


Batch = TypeVar("Batch", ConditionInputs, Conditions)


def _to_device(batch: Batch, device: torch.device | str, dtype: torch.dtype | None) -> Batch:
    moved: dict[str, Any] = {
        name: value.to(device, dtype if value.is_floating_point() else None)
        for name, value in vars(batch).items()
        if value is not None
    }
    return replace(batch, **moved)
