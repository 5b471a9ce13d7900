"""A checkpoint in memory, independent of the layout of its files: configs, and tensors that are read on access."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

SILENCE = "silence_latent"
"""Name of the silence latent among tensors, and of its file without the suffix."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Song durations of a checkpoint in seconds: the range that it accepts, and the default."""

    min_seconds: float = 10.0
    max_seconds: float = 600.0
    default_seconds: float = 120.0

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.default_seconds <= self.max_seconds:
            raise ValueError(
                f"lengths.default_seconds={self.default_seconds:g}: need 0 < min_seconds={self.min_seconds:g} <= it "
                f"<= max_seconds={self.max_seconds:g}"
            )

    def check(self, seconds: float, field: str | None = None) -> float:
        """``seconds``, if in range; ``field`` is the field of the song that implies the length, for the message.

        Raises:
            ValueError: the length is out of range.
        """
        if not self.min_seconds <= seconds <= self.max_seconds:
            subject = f"song.{field}: the song would last {seconds:g} s;" if field else f"song.seconds={seconds:g}:"
            raise ValueError(
                f"{subject} this checkpoint makes {self.min_seconds:g} to {self.max_seconds:g} s; "
                "use a length in that range"
            )
        return float(seconds)

    def nearest(self, seconds: float) -> float:
        """``seconds``, clamped to the range."""
        return min(max(seconds, self.min_seconds), self.max_seconds)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Configs and tensors of a model. Mappings of tensors read each tensor from its file on access.

    Args:
        name: for messages: a folder, a shipped name or a Hub id.
        network_config: fields of the network's config, named as in the published ``config.json``.
        network: parameters by published names.
        silence: latents of digital silence, ``(1, T, C)``.
        autoencoder_class: ``oobleck`` or ``spectral``.
        autoencoder_config: fields of that class's config.
        autoencoder: its parameters by published names; ``None`` if the checkpoint has no autoencoder.
        text_encoder: a Hugging Face Qwen3 folder; ``None`` if the checkpoint has no text encoder.
        lengths: song durations.
        sampler: default sampler: ``{"schedule": {"class": "Shifted", "steps": 50}, ...}``; empty for the release's.
    """

    name: str
    network_config: Mapping[str, Any]
    network: Mapping[str, Tensor]
    silence: Tensor
    autoencoder_class: str
    autoencoder_config: Mapping[str, Any]
    autoencoder: Mapping[str, Tensor] | None
    text_encoder: Path | None
    lengths: Lengths = Lengths()
    sampler: Mapping[str, Any] = field(default_factory=dict)
