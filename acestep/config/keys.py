"""The kinds of the keys that ``infer.yaml`` and ``evaluate.yaml`` have beside their groups.

``train.yaml`` has a dataclass for this (``config.mains``); ``from`` is a word of Python, and so no field of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from acestep.modes import FIXED
from acestep.songs.song import shown


@dataclass(frozen=True)
class Kind:
    """What a value must be: ``holds`` says whether it is, ``rule`` tells it to people."""

    rule: str
    holds: Callable[[Any], bool]

    def optional(self) -> Kind:
        """This, or null."""
        return Kind(f"{self.rule}, or null", lambda value: value is None or self.holds(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


TEXT = Kind("need text", _is_text)
MAYBE_EMPTY = Kind("need text", lambda value: isinstance(value, str))
FLAG = Kind("need true or false", lambda value: isinstance(value, bool))
COUNT = Kind(
    "need a whole number of at least 1",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
)
LIST = Kind("need a list, as in [A,B]", lambda value: isinstance(value, list))
NAMES = Kind("need a list of names, as in [A,B]", lambda value: isinstance(value, list) and all(map(_is_text, value)))
HASHES = Kind(
    "need a hash for each file",
    lambda value: isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values()),
)
CHECKPOINTS = Kind(
    "need a checkpoint, or a list of them, each once",
    lambda value: (
        _is_text(value) or (bool(value) and NAMES.holds(value) and len({str(name) for name in value}) == len(value))
    ),
)

MEASURED = [mode.value for mode in FIXED]
FIXED_MEMORY = Kind(
    f"need {', '.join(MEASURED[:-1])} or {MEASURED[-1]}; what is free at the moment must not decide what is measured",
    lambda value: value in MEASURED,
)

CALL = {
    "songs": TEXT.optional(),
    "out": TEXT.optional(),
    "from": TEXT.optional(),
    "overwrite": FLAG,
    "format": TEXT,
    "keep_latents": FLAG,
}
"""What ``infer.py`` is told of where files come from and go, not of what is in them."""
SETTINGS = {
    "weights": TEXT,
    "autoencoder": TEXT.optional(),
    "normalize": TEXT,
    "adapters": LIST.optional(),
    "merge": FLAG,
    "batch_size": COUNT,
    "allow_untrained": FLAG,
    "memory": TEXT,
    "compile": FLAG,
    "padding": TEXT.optional(),
    "device": TEXT,
    "dtype": TEXT,
}
"""What decides a song beside its request and its sampler."""
NOTED = {"weights_sha256": TEXT.optional(), "autoencoder_sha256": TEXT.optional(), "files": HASHES}
"""What a sidecar says beyond the settings that a song was made under."""
EVALUATION = {
    "weights": CHECKPOINTS,
    "autoencoder": CHECKPOINTS.optional(),
    "out": TEXT,
    "compare": NAMES,
    "available_only": FLAG,
    "laion_clap": MAYBE_EMPTY,
    "reproduce": TEXT.optional(),
    "score": TEXT.optional(),
    "wandb": MAYBE_EMPTY,
    "memory": FIXED_MEMORY,
    "compile": FLAG,
    "padding": TEXT.optional(),
    "device": TEXT,
    "dtype": TEXT,
}


def check_keys(settings: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuse a value of ``settings`` that is not of its kind; keys that are not there are fine."""
    for key, kind in kinds.items():
        if key in settings and not kind.holds(settings[key]):
            value = "null" if settings[key] is None else shown(settings[key])
            raise ValueError(f"{key}={value}: {kind.rule}")
