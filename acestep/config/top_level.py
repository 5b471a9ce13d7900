"""The keys of ``train.yaml``, ``evaluate.yaml`` and ``infer.yaml`` beside their groups, and what each may hold.

Imports nothing heavy, so that values are checked before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from acestep.memory_modes import MEMORY_MODES
from acestep.songs.song import shorten

RUN_DIR_KEYS = {"train": "run.dir", "evaluate": "out"}
"""The programs whose runs are kept in a folder, resumed and swept, and the key that names the folder."""


@dataclass(frozen=True)
class KeyRule:
    """A condition on a value: ``text`` for messages, ``accepts`` as the test."""

    text: str
    accepts: Callable[[Any], bool]

    def optional(self) -> KeyRule:
        """This rule, or null."""
        return KeyRule(f"{self.text}, or null", lambda value: value is None or self.accepts(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _whole_number(least: int) -> KeyRule:
    return KeyRule(
        f"need a whole number of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def _one_of(*names: str, reason: str = "") -> KeyRule:
    return KeyRule(f"need {', '.join(names[:-1])} or {names[-1]}{reason}", lambda value: value in names)


TEXT = KeyRule("need text", _is_text)
POSSIBLY_EMPTY_TEXT = KeyRule("need text", lambda value: isinstance(value, str))
BOOLEAN = KeyRule("need true or false", lambda value: isinstance(value, bool))
LIST = KeyRule("need a list, as in [A,B]", lambda value: isinstance(value, list))
NAMES = KeyRule(
    "need a list of names, as in [A,B]", lambda value: isinstance(value, list) and all(map(_is_text, value))
)
HASHES = KeyRule(
    "need a hash for each file",
    lambda value: isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values()),
)
CHECKPOINTS = KeyRule(
    "need a checkpoint, or a list of them, each once",
    lambda value: (
        _is_text(value) or (bool(value) and NAMES.accepts(value) and len({str(name) for name in value}) == len(value))
    ),
)
FIXED_MEMORY = _one_of(
    *(mode.value for mode in MEMORY_MODES), reason="; auto depends on the memory that is free, and so would the songs"
)

TRAIN_KEYS = {
    "name": TEXT,
    "seed": _whole_number(0),
    "weights": TEXT,
    "network": TEXT,
    "trainable": TEXT,
    "resume": _one_of("auto", "never"),
    "reproduce": TEXT.optional(),
    "score": TEXT,
}
INFER_FILE_KEYS = {
    "songs": TEXT.optional(),
    "out": TEXT.optional(),
    "from": TEXT.optional(),
    "overwrite": BOOLEAN,
    "format": TEXT,
    "keep_latents": BOOLEAN,
}
"""Keys of ``infer.yaml`` that say where files come from and go; they change no audio, and are in no sidecar."""
INFER_KEYS = {
    "weights": TEXT,
    "autoencoder": TEXT.optional(),
    "normalize": TEXT,
    "adapters": LIST.optional(),
    "merge": BOOLEAN,
    "batch_size": _whole_number(1),
    "allow_untrained": BOOLEAN,
    "memory": TEXT,
    "compile": BOOLEAN,
    "padding": TEXT.optional(),
    "device": TEXT,
    "dtype": TEXT,
}
"""Keys of ``infer.yaml`` that determine the audio, beside the song and the sampler."""
SIDECAR_KEYS = {
    "weights_sha256": TEXT.optional(),
    "autoencoder_sha256": TEXT.optional(),
    "files": HASHES,
    "code": KeyRule("need a file and its hash for each class", lambda value: isinstance(value, dict)),
}
"""Keys of a sidecar's settings beside those of ``infer.yaml``."""
EVALUATE_KEYS = {
    "weights": CHECKPOINTS,
    "autoencoder": CHECKPOINTS.optional(),
    "out": TEXT,
    "compare": NAMES,
    "available_only": BOOLEAN,
    "laion_clap": POSSIBLY_EMPTY_TEXT,
    "reproduce": TEXT.optional(),
    "score": TEXT.optional(),
    "wandb": POSSIBLY_EMPTY_TEXT,
    "memory": FIXED_MEMORY,
    "compile": BOOLEAN,
    "padding": TEXT.optional(),
    "device": TEXT,
    "dtype": TEXT,
}


def check_keys(settings: Mapping[str, Any], rules: Mapping[str, KeyRule]) -> None:
    """Check the values of ``settings`` that have a rule. Raises ``ValueError`` for the first that breaks its rule."""
    for key, rule in rules.items():
        if key in settings and not rule.accepts(settings[key]):
            value = "null" if settings[key] is None else shorten(settings[key])
            raise ValueError(f"{key}={value}: {rule.text}")
