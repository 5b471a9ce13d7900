"""A research framework for ACE-Step v1.5: the model, the flow, training and evaluation, each defined once."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["Audio", "Pipeline", "Request", "Song"]

_HOMES = {
    "Audio": "acestep.audio.audio",
    "Pipeline": "acestep.pipeline.pipeline",
    "Request": "acestep.types",
    "Song": "acestep.types",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for, so that ``import acestep`` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'acestep' has no attribute {name!r}")

    return getattr(import_module(_HOMES[name]), name)
