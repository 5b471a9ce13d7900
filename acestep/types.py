"""The values that rooms hand to each other. Knows shapes and words; knows no network, file or device.

Shape legend: B songs, T latent frames (25 Hz), L condition tokens, C latent channels (64), D text width,
E condition width, N references, S samples, A audio channels (2).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from acestep.songs.song import AdapterUse as AdapterUse
from acestep.songs.song import Request as Request
from acestep.songs.song import Song as Song


@dataclass(frozen=True)
class ConditionInputs:
    """What the condition encoder reads: frozen text features and latents, batched, before any trained layer.

    ``references`` are packed over the batch; ``reference_index`` names the song of each. ``hints`` are 25 Hz
    latents from audio codes; where ``is_cover``, they (or the tokenizer's round trip) replace ``source``.
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
        """The same values on ``device``; floating tensors also cast to ``dtype``."""
        return _moved(self, device, dtype)


@dataclass(frozen=True)
class Conditions:
    """What the DiT reads beside the noisy latents.

    ``states`` is the packed sequence lyrics, timbre, text, then padding; ``mask`` is True on its valid rows;
    ``context`` is source latents and chunk mask side by side; ``frame_mask`` is True on real latent frames.
    """

    states: Float[Tensor, "b l e"]
    mask: Bool[Tensor, "b l"]
    context: Float[Tensor, "b t c2"]
    frame_mask: Bool[Tensor, "b t"]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditions:
        """The same values on ``device``; floating tensors also cast to ``dtype``."""
        return _moved(self, device, dtype)

    def cat(self, other: Conditions) -> Conditions:
        """Both batches as one, ``self`` first. Sequence lengths must agree."""
        return Conditions(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def where(self, rows: Bool[Tensor, " b"], other: Conditions) -> Conditions:
        """Row by row: ``other`` where ``rows`` is True, else ``self``."""
        return replace(
            self,
            states=torch.where(rows[:, None, None], other.states, self.states),
            mask=torch.where(rows[:, None], other.mask, self.mask),
            context=torch.where(rows[:, None, None], other.context, self.context),
        )


class VelocityField(Protocol):
    """The learned field: velocity (noise minus data) at noisy latents ``x_t`` and times ``t`` in [0, 1], 1 = noise."""

    def __call__(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions
    ) -> Float[Tensor, "b t c"]:
        """The velocity of each song."""
        ...


@runtime_checkable
class PairField(VelocityField, Protocol):
    """A field that has both predictions of guidance for less than the price of two."""

    def pair(
        self, x_t: Float[Tensor, "b t c"], t: Float[Tensor, " b"], conditions: Conditions, null: Conditions
    ) -> tuple[Float[Tensor, "b t c"], Float[Tensor, "b t c"]]:
        """The velocity of each song under ``conditions`` and under ``null``."""
        ...


@dataclass(frozen=True)
class Posterior:
    """An autoencoder's belief about a song's latents: a diagonal Gaussian, frames first."""

    mean: Float[Tensor, "b t c"]
    scale: Float[Tensor, "b t c"]

    def sample(self, noise: Float[Tensor, "b t c"]) -> Float[Tensor, "b t c"]:
        """The draw that standard normal ``noise`` selects."""
        return self.mean + self.scale * noise


class Autoencoder(Protocol):
    """Waveform to latents and back. ``hop`` samples make one frame of ``latent_channels`` numbers."""

    sample_rate: int
    hop: int
    audio_channels: int
    latent_channels: int

    def encode(self, audio: Float[Tensor, "b a s"]) -> Posterior:
        """Latents of waveforms in [-1, 1]."""
        ...

    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveforms of latents."""
        ...


@runtime_checkable
class PlacedDecoder(Protocol):
    """An autoencoder to whose decoder a frame's place in the song matters."""

    def decode_at(self, latents: Float[Tensor, "b t c"], first: int) -> Float[Tensor, "b a s"]:
        """Waveforms of latents of which the first is the songs' frame ``first``."""
        ...


Batch = TypeVar("Batch", ConditionInputs, Conditions)


def _moved(batch: Batch, device: torch.device | str, dtype: torch.dtype | None) -> Batch:
    def move(value: Tensor | None) -> Tensor | None:
        if value is None:
            return None
        return value.to(device, dtype if value.is_floating_point() else None)

    return replace(batch, **{field.name: move(getattr(batch, field.name)) for field in fields(batch)})
