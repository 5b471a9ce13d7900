"""A checkpoint as a value, whatever the layout it was read from. Knows names and shapes; builds no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How many seconds of music a checkpoint makes: the range it accepts, and what it makes when not told."""

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
        """``seconds``, if this checkpoint makes songs as long; ``field`` is what of a song asks for it, if another."""
        if not self.min_seconds <= seconds <= self.max_seconds:
            asked = f"song.{field}: the song would last {seconds:g} s;" if field else f"song.seconds={seconds:g}:"
            raise ValueError(
                f"{asked} this checkpoint makes {self.min_seconds:g} to {self.max_seconds:g} s; "
                "ask for a length in that range"
            )
        return float(seconds)

    def nearest(self, seconds: float) -> float:
        """``seconds``, or the nearest length that this checkpoint makes."""
        return min(max(seconds, self.min_seconds), self.max_seconds)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The parts of a model, not yet built.

    Args:
        name: what to call it in messages: a folder or a shipped name.
        network_config: fields of the network's config, as published ``config.json`` names them.
        network: parameters by published names.
        silence: latents of digital silence, ``(1, T, C)``.
        autoencoder_class: ``oobleck`` or ``spectral``.
        autoencoder_config: fields of that class's config.
        autoencoder: its parameters by published names; ``None`` if the checkpoint comes without.
        text_encoder: a Hugging Face Qwen3 folder; ``None`` if the checkpoint comes without.
        lengths: seconds of music it makes.
        sampler: its usual sampler: ``{"schedule": {"class": "Shifted", "steps": 50}, ...}``; empty for the release's.
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
