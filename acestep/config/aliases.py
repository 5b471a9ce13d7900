"""Names that changed, old to new: they keep working for one release, with a warning.

Keys, options and classes are replaced in command lines and in what earlier runs recorded; in users' own config files,
classes only. A mapping given as one value keeps its inner keys. A run's identity is computed under its first names
(:func:`first_names`), so that runs of earlier versions are found by it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

KEYS: dict[str, str] = {
    "callbacks.watch": "callbacks.monitor",
    "data.untold": "data.metadata_dropout",
    "eval.wild": "eval.random_plans",
    "task.curriculum.improvise": "task.example_mix.unconditional",
    "task.curriculum.listen": "task.example_mix.captioning",
    "task.curriculum": "task.example_mix",
    "task.judged": "task.validation_plans",
    "task.rebuild.judge_rate": "task.loss.discriminator_lr_factor",
    "task.rebuild": "task.loss",
}
"""Config keys, in full."""

OPTIONS: dict[tuple[str, str], str] = {
    ("callbacks", "parts"): "no_samples",
    ("callbacks", "planner"): "default",
    ("clamp", "own"): "checkpoint",
    ("correction", "own"): "checkpoint",
    ("guidance", "own"): "checkpoint",
    ("sampler", "own"): "checkpoint",
    ("schedule", "own"): "checkpoint",
    ("smoothing", "own"): "checkpoint",
    ("solver", "own"): "checkpoint",
}
"""Options of a config group: (group, old name) to the new name."""

TARGETS: dict[str, str] = {
    "acestep.evaluation.attention.LyricAlignment": "acestep.evaluation.metrics.LyricAlignment",
    "acestep.evaluation.clap.LaionClap": "acestep.evaluation.embedders.LaionClap",
    "acestep.evaluation.clap.TransformersClap": "acestep.evaluation.embedders.TransformersClap",
    "acestep.evaluation.learned.AudioboxAesthetics": "acestep.evaluation.metrics.AudioboxAesthetics",
    "acestep.evaluation.learned.SongEval": "acestep.evaluation.metrics.SongEval",
    "acestep.evaluation.lyrics.LanguageAdherence": "acestep.evaluation.metrics.LanguageAdherence",
    "acestep.evaluation.lyrics.LyricsAccuracy": "acestep.evaluation.metrics.LyricsAccuracy",
    "acestep.evaluation.mel.MelSpec": "acestep.evaluation.embedders.MelEmbedder",
    "acestep.evaluation.micro_clap.MicroClapSpec": "acestep.evaluation.embedders.MicroClap",
    "acestep.evaluation.neighbours.Coverage": "acestep.evaluation.metrics.Coverage",
    "acestep.evaluation.neighbours.Diversity": "acestep.evaluation.metrics.Diversity",
    "acestep.evaluation.neighbours.Memorisation": "acestep.evaluation.metrics.Memorisation",
    "acestep.evaluation.rhythm.TempoAdherence": "acestep.evaluation.metrics.TempoAdherence",
    "acestep.evaluation.signal.DurationAdherence": "acestep.evaluation.metrics.DurationAdherence",
    "acestep.evaluation.signal.SignalHealth": "acestep.evaluation.metrics.SignalHealth",
    "acestep.evaluation.tagging.TagDivergence": "acestep.evaluation.metrics.TagDivergence",
    "acestep.evaluation.tonality.KeyAdherence": "acestep.evaluation.metrics.KeyAdherence",
    "acestep.evaluation.transcription.WhisperSpec": "acestep.evaluation.embedders.Whisper",
    "acestep.data.tasks.TaskMix": "acestep.data.dataset.TaskMix",
    "acestep.data.captions.OwnTag": "acestep.data.captions.DatasetTag",
    "acestep.planner.begin.Pretrained": "acestep.planner.init.PretrainedInit",
    "acestep.planner.begin.Scratch": "acestep.planner.init.ScratchInit",
    "acestep.planner.document.Rules": "acestep.planner.grammar.Rules",
    "acestep.training.autoencoder.Rebuild": "acestep.training.autoencoder.ReconstructionLoss",
    "acestep.training.callbacks.Watch": "acestep.training.callbacks.TrainingMonitor",
    "acestep.training.planner.Curriculum": "acestep.training.planner.ExampleMix",
    "acestep.training.watch.WatchParts": "acestep.training.callbacks.TrainingMonitor",
    "acestep.training.ema.EMA": "acestep.training.callbacks.EMA",
    "acestep.training.scores.ScoreSongs": "acestep.training.callbacks.ScoreSongs",
}
"""Dotted paths of classes, as ``_target_`` names them."""

MODULES: dict[str, str] = {
    "acestep.config.planning": "acestep.cli.plan_songs",
    "acestep.evaluation.planning": "acestep.evaluation.planner_study",
    "acestep.evaluation.reconstruction": "acestep.evaluation.reconstruction_study",
    "acestep.song": "acestep.songs.song",
    "acestep.training.audio": "acestep.training.audio_datamodule",
    "acestep.training.data": "acestep.training.datamodule",
    "acestep.training.jobs": "acestep.training.tasks",
    "acestep.training.schedules": "acestep.training.lr_schedules",
}
"""Modules of classes that a ``_target_`` names; ``TARGETS`` is applied to the result."""

_DOTTED = re.compile(r"\bacestep(?:\.\w+)+")
_WORD = re.compile(r"(\+{1,2}|~)?([^=@]+)(@[^=]*)?(?:(=)(.*))?", re.DOTALL)
_warned: set[str] = set()


def rename_words(words: Sequence[str]) -> list[str]:
    """Arguments of a command line, or recorded overrides, with former keys, options and classes replaced."""
    return [word if word.startswith("-") else _rename_word(word) for word in words]


def _rename_word(word: str) -> str:
    found = _WORD.fullmatch(word)
    if not found:
        return word
    prefix, key, package, equals, value = (part or "" for part in found.groups())
    new = _rename_key(key)
    if new != key:
        _warn(key, new)
    for (group, old), option in OPTIONS.items():
        if key == group and old in re.split(r"[\[\],\s]+", value):
            value = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.])", option, value)
            _warn(f"{group}={old}", f"{group}={option}")
    if "_target_" in word:
        value = _DOTTED.sub(lambda match: rename_target(match[0]), value)
    return f"{prefix}{new}{package}{equals}{value}"


def _rename_key(key: str) -> str:
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return f"{new}{key.removeprefix(old)}"
    return key


def rename_target(dotted: str) -> str:
    """Today's dotted path of a class."""
    new = dotted
    module, _, name = new.rpartition(".")
    if new not in TARGETS and module in MODULES:
        new = f"{MODULES[module]}.{name}"
    while new in TARGETS:
        new = TARGETS[new]
    if new != dotted:
        _warn(dotted, new)
    return new


def rename_recorded(values: Any) -> Any:
    """A recorded config (plain data) with former keys and classes replaced."""
    values = _map_targets(values, rename_target)
    for old, new in KEYS.items():
        _move(values, old, new)
    return values


def first_names(values: Any) -> Any:
    """A config (plain data) under the first name of every key and class: equal for equal runs of all versions."""
    former = {new: old for old, new in reversed(TARGETS.items())}
    modules = {new: old for old, new in MODULES.items()}

    def first(dotted: str) -> str:
        seen: set[str] = set()
        while dotted in former and dotted not in seen:
            seen.add(dotted)
            dotted = former[dotted]
        module, _, name = dotted.rpartition(".")
        return f"{modules[module]}.{name}" if module in modules else dotted

    values = _map_targets(values, first)
    monitor = (values.get("callbacks") or {}).get("monitor") or {}
    trains_dit = str((values.get("task") or {}).get("_target_")).endswith(".DiTTask")
    if monitor.get("_target_") == "acestep.training.callbacks.Watch" and not trains_dit:
        monitor["_target_"] = "acestep.training.watch.WatchParts"  # another class before both became one
    for old, new in KEYS.items():
        _move(values, new, old)
    return values


def rename_targets(cfg: Any) -> None:
    """Replace former classes in a composed config, in place: a user's own YAML files may name them."""
    if not isinstance(cfg, DictConfig | ListConfig) or cfg._is_none() or cfg._is_interpolation():
        return
    keys: Any = cfg.keys() if isinstance(cfg, DictConfig) else range(len(cfg))
    for key in list(keys):
        node: Any = cfg._get_node(key)
        rename_targets(node)
        if key == "_target_" and (new := rename_target(str(cfg[key]))) != cfg[key]:
            cfg[key] = new


def _map_targets(values: Any, change: Any) -> Any:
    if isinstance(values, dict):
        return {
            key: change(value) if key == "_target_" and isinstance(value, str) else _map_targets(value, change)
            for key, value in values.items()
        }
    return [_map_targets(value, change) for value in values] if isinstance(values, list) else values


def _move(values: Any, old: str, new: str) -> None:
    """Move the entry at the full key ``old`` to ``new``; where there is none, nothing happens."""
    *parents, last = old.split(".")
    place = values
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        return
    *parents, name = new.split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
    value, moved = place.pop(last), target.get(name)
    target[name] = value | moved if isinstance(value, dict) and isinstance(moved, dict) else value


def _warn(old: str, new: str) -> None:
    if old not in _warned:
        _warned.add(old)
        # Not by logging, which Hydra configures only after it has read the command line.
        sys.stderr.write(f"warning: {old} has a new name; use {new}\n")
