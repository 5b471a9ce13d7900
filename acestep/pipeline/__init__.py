"""Songs to audio: prepare the batch, sample latents, decode; and the pipeline's construction from a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acestep.lazy import lazy_attributes

if TYPE_CHECKING:
    from acestep.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]

__getattr__ = lazy_attributes(__name__, {"Pipeline": "acestep.pipeline.pipeline"})
