"""Config groups: the class behind each, whose fields become a typed Hydra node, so that every override is checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import OmegaConf

from acestep.config import source
from acestep.config.aliases import OPTIONS
from acestep.config.source import REQUIRED

SCHEMAS = {
    "model": {"acestep": "acestep.models.acestep.AceStepConfig"},
    "adapter": {
        "lora": "acestep.adapters.LoRA",
        "lokr": "acestep.adapters.LoKr",
        "loha": "acestep.adapters.LoHa",
        "oft": "acestep.adapters.OFT",
    },
    "timesteps": {
        "logit_normal": "acestep.flow.LogitNormal",
        "logit_normal_max": "acestep.flow.LogitNormalMax",
        "uniform": "acestep.flow.Uniform",
        "discrete": "acestep.flow.Discrete",
        "warped": "acestep.flow.Warped",
        "stratified": "acestep.flow.Stratified",
    },
    "weighting": {
        "flat": "acestep.flow.Flat",
        "clean_error": "acestep.flow.CleanError",
        "min_snr": "acestep.flow.MinSNR",
    },
    "objective": {"flow_matching": "acestep.flow.FlowMatching"},
    "data": {
        "latents": "acestep.training.datamodule.DataConfig",
        "audio": "acestep.training.audio_datamodule.AudioConfig",
    },
    "task": {
        "dit": "acestep.training.tasks.DiTTask",
        "tokenizer": "acestep.training.tasks.TokenizerTask",
        "planner": "acestep.training.tasks.PlannerTask",
        "autoencoder": "acestep.training.tasks.AutoencoderTask",
    },
    "language": {"pretrained": "acestep.planner.init.PretrainedInit", "scratch": "acestep.planner.init.ScratchInit"},
    "planner": {"planner": "acestep.cli.plan_songs.Planning"},
    "optimizer": {
        "adamw": "acestep.training.optim.AdamW",
        "adamw_8bit": "acestep.training.optim.AdamW8bit",
        "prodigy": "acestep.training.optim.Prodigy",
        "muon": "acestep.training.optim.Muon",
    },
    "trainer": {"trainer": "acestep.training.trainer.TrainerConfig"},
    "lr": {
        "cosine": "acestep.training.lr_schedules.WarmupCosine",
        "constant": "acestep.training.lr_schedules.WarmupConstant",
        "linear": "acestep.training.lr_schedules.WarmupLinear",
        "stable_decay": "acestep.training.lr_schedules.WarmupStableDecay",
        "inverse_root": "acestep.training.lr_schedules.WarmupInverseRoot",
    },
    "schedule": {
        "linear": "acestep.flow.Linear",
        "shifted": "acestep.flow.Shifted",
        "custom": "acestep.flow.Custom",
        "turbo": "acestep.flow.Turbo",
        "turbo_custom": "acestep.flow.TurboCustom",
    },
    "solver": {"euler": "acestep.flow.Euler", "heun": "acestep.flow.Heun", "sde": "acestep.flow.SDE"},
    "guidance": {
        "none": "acestep.flow.NoGuidance",
        "cfg": "acestep.flow.CFG",
        "apg": "acestep.flow.APG",
        "adg": "acestep.flow.ADG",
    },
    "correction": {"none": "acestep.flow.NoCorrection", "dcw": "acestep.flow.DCW"},
    "clamp": {"norm": "acestep.flow.NormClamp"},
    "smoothing": {"ema": "acestep.flow.VelocityEMA"},
    "song": {"song": "acestep.songs.song.Request"},
    "eval": {
        "evaluation": "acestep.evaluation.suite.Evaluation",
        "reconstruction_study": "acestep.evaluation.reconstruction_study.ReconstructionStudy",
        "planner_study": "acestep.evaluation.planner_study.PlannerStudy",
    },
}
"""Each class by group and name; it is imported when a config first uses it."""
PRIMITIVES = (int, float, bool, str, bytes)

_WITHOUT_IMPORTS: ContextVar[bool] = ContextVar("without_imports", default=False)


def register() -> None:
    """Register every schema as ``NAME_schema`` of its group, for YAML files to extend, and former option names."""
    for group, classes in SCHEMAS.items():
        for name, dotted in classes.items():
            store(group, f"{name}_schema", dotted)
    for (group, old), new in OPTIONS.items():
        ConfigStore.instance().store(old, {"defaults": [new]}, group)
    run_dir = "acestep.config.run_dir"  # imported late, since it loads Lightning
    OmegaConf.register_new_resolver("identity", lambda *, _root_: import_module(run_dir).identity(_root_), replace=True)


@contextmanager
def without_imports() -> Iterator[None]:
    """Inside, nodes are read from source files: the same keys and values, without types."""
    token = _WITHOUT_IMPORTS.set(True)
    try:
        yield
    finally:
        _WITHOUT_IMPORTS.reset(token)


def load_class(dotted: str, key: str = "") -> type:
    """Import the class ``dotted``. Raises ``ValueError`` that names ``key`` where there is none."""
    module_name, _, name = dotted.rpartition(".")
    where = f"{key}._target_" if key else "_target_"
    try:
        module = import_module(module_name or name)
        cls = getattr(module, name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that the class's own module imports
        raise ValueError(
            f"{where}={dotted}: there is no module {error.name}; need a file in the current directory or on PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{where}={dotted}: {getattr(module, '__file__', module_name)} has no {name}") from error
    if not isinstance(cls, type):
        raise ValueError(f"{where}={dotted}: need a class")
    return cls


@cache
def node(cls: type) -> type:
    """An overridable Hydra node for the dataclass ``cls``: ``_target_`` and the same names, types and defaults.

    A field without default is required (``???``). A field that holds a concrete dataclass becomes a nested typed node;
    one that holds a protocol stays open, to be filled by an interpolation or a ``_target_``. A mirror is needed because
    OmegaConf makes nodes of frozen dataclasses read-only.
    """
    if not is_dataclass(cls):
        raise ValueError(f"_target_={_path(cls)}: need a dataclass, whose fields are the keys")
    hints = get_type_hints(cls)
    target = ("_target_", str, field(default=_path(cls)))
    mirrored = [(f.name, _annotation(hints[f.name]), _default(f, hints[f.name])) for f in fields(cls) if f.init]
    return make_dataclass(f"{cls.__name__}Node", [target, *mirrored], kw_only=True)


def store(group: str, name: str, dotted: str, values: Mapping[str, Any] | None = None) -> None:
    """Register the class ``dotted`` as option ``name`` of ``group``, with ``values`` in place of its defaults."""
    place = ConfigStore.instance().repo
    for part in group.split("/"):
        place = place.setdefault(part, {})
    place[f"{name}.yaml"] = _LateNode(f"{name}.yaml", group, dotted, values or {})


class _LateNode(ConfigNode):
    """A node of Hydra's store that is made at its first use."""

    def __init__(self, name: str, group: str, dotted: str, values: Mapping[str, Any]) -> None:
        self.name, self.group, self.package, self.provider = name, group, None, "acestep"
        self._dotted, self._values, self._key = dotted, values, group
        self._node: Any = None

    @property
    def node(self) -> Any:
        """The node: typed, or plain inside :func:`without_imports` where its source text is enough."""
        if self._node is not None:
            return self._node
        if _WITHOUT_IMPORTS.get():
            try:
                return OmegaConf.create({**source.defaults(self._dotted), **self._values})
            except source.NotStaticError:
                pass
        self._node = OmegaConf.merge(OmegaConf.structured(node(load_class(self._dotted, self._key))), self._values)
        return self._node

    @node.setter
    def node(self, value: Any) -> None:
        self._node = value


def _annotation(hint: Any) -> Any:
    """The OmegaConf type that checks ``hint`` most closely; ``Any`` where it has none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        inner = [argument for argument in arguments if argument is not NoneType]
        known = _annotation(inner[0]) if len(inner) == 1 else Any
        return Union[known, None] if NoneType in arguments else known  # noqa: UP007  OmegaConf reads no ``X | None``
    if origin in (list, tuple) or (inspect.isclass(origin) and issubclass(origin, (list, tuple))):
        items = {_annotation(argument) for argument in arguments if argument is not Ellipsis}
        item: Any = items.pop() if len(items) == 1 else Any
        return list[item]
    if inspect.isclass(hint) and (hint in PRIMITIVES or issubclass(hint, Enum)):
        return hint
    return node(hint) if isinstance(hint, type) and is_dataclass(hint) else Any


def _default(source: Field[Any], hint: Any) -> Any:
    value = source.default if source.default_factory is MISSING else source.default_factory()
    if value is MISSING:
        return field(default=REQUIRED)
    return field(default_factory=lambda: _value(value, is_open=_annotation(hint) is Any))


def _value(value: Any, is_open: bool) -> Any:
    """``value`` as OmegaConf can hold it: dataclasses as filled nodes, tuples as lists.

    Where the field is open, a dataclass becomes a plain mapping of its class and what differs from the class's own
    defaults: a mapping for another class is merged over it, and would otherwise meet keys that it does not have.
    """
    if is_dataclass(value):
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        if is_open:
            given = {f.name: given[f.name] for f in fields(value) if f.init and given[f.name] != f.default}
        filled = {name: _value(part, is_open) for name, part in given.items()}
        cls: Any = type(value)
        return {"_target_": _path(cls), **filled} if is_open else node(cls)(**filled)
    if isinstance(value, (tuple, list)):
        return [_value(item, is_open) for item in value]
    if isinstance(value, Mapping):
        return {key: _value(item, is_open) for key, item in value.items()}
    return value


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
