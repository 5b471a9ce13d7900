"""A research framework for ACE-Step v1.5: the model, the flow, training and evaluation, each defined once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acestep.lazy import lazy_attributes

if TYPE_CHECKING:
    from acestep.audio import Audio
    from acestep.pipeline import Pipeline
    from acestep.songs import Request, Song

__all__ = ["Audio", "Pipeline", "Request", "Song"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "Audio": "acestep.audio.audio",
        "Pipeline": "acestep.pipeline.pipeline",
        "Request": "acestep.songs",
        "Song": "acestep.songs",
    },
)
