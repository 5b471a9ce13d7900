"""Audio: files, loudness, and processing in overlapping windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acestep.lazy import lazy_attributes

if TYPE_CHECKING:
    from acestep.audio.audio import Audio, read_audio

__all__ = ["Audio", "read_audio"]

__getattr__ = lazy_attributes(__name__, {name: "acestep.audio.audio" for name in __all__})
