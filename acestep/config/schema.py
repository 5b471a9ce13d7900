"""Dataclass fields are the configuration: mirrors classes into Hydra nodes, so that every override is type-checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.utils import get_class
from omegaconf import MISSING as REQUIRED
from omegaconf import OmegaConf

PRIMITIVES = (int, float, bool, str, bytes)


@cache
def node(cls: type) -> type:
    """An overridable Hydra node for ``cls``: ``_target_`` and the same names, types and defaults.

    ``cls`` is a dataclass, or a module whose constructor takes one ``config`` dataclass, whose fields are then the
    node's. A field without default is required (``???``). A field that holds a concrete dataclass becomes a nested
    typed node; one that holds a protocol stays open, to be filled by an interpolation or a ``_target_``.
    A mirror is needed because OmegaConf makes nodes of frozen dataclasses read-only.
    """
    source = cls if is_dataclass(cls) else get_type_hints(cls.__init__)["config"]
    hints = get_type_hints(source)
    target = ("_target_", str, field(default=_path(cls)))
    mirrored = [(f.name, _annotation(hints[f.name]), _default(f, hints[f.name])) for f in fields(source) if f.init]
    return make_dataclass(f"{cls.__name__}Node", [target, *mirrored], kw_only=True)


def store(group: str, name: str, dotted: str, is_target: bool = True) -> None:
    """Register the class ``dotted`` as option ``name`` of ``group``, for a YAML file to extend with values.

    The class is imported when a config first asks for it, so that ``--help`` loads what it shows and no more. Without
    ``is_target`` the class is itself the node: keys without an object.
    """
    place = ConfigStore.instance().repo
    for part in filter(None, group.split("/")):
        place = place.setdefault(part, {})
    place[f"{name}.yaml"] = _LateNode(f"{name}.yaml", group or None, dotted, is_target)


class _LateNode(ConfigNode):
    """A node of Hydra's store that is made at its first use."""

    def __init__(self, name: str, group: str | None, dotted: str, is_target: bool) -> None:
        self.name, self.group, self.package, self.provider = name, group, None, "acestep"
        self._dotted, self._is_target = dotted, is_target
        self._node: Any = None

    @property
    def node(self) -> Any:
        """The node itself."""
        if self._node is None:
            cls = get_class(self._dotted)
            self._node = OmegaConf.structured(node(cls) if self._is_target else cls)
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
        inner = {_annotation(argument) for argument in arguments if argument is not Ellipsis}
        return list[inner.pop()] if len(inner) == 1 else list[Any]
    if inspect.isclass(hint) and (hint in PRIMITIVES or issubclass(hint, Enum)):
        return hint
    return node(hint) if is_dataclass(hint) else Any


def _default(source: Field, hint: Any) -> Any:
    value = source.default if source.default_factory is MISSING else source.default_factory()
    if value is MISSING:
        return field(default=REQUIRED)
    return field(default_factory=lambda: _value(value, is_open=_annotation(hint) is Any))


def _value(value: Any, is_open: bool) -> Any:
    """``value`` as OmegaConf can hold it: dataclasses as filled nodes, tuples as lists.

    Where the field is open, a dataclass becomes a plain mapping of its class and what differs from the class's own
    defaults: a mapping for another class is merged over it, and would meet foreign keys else.
    """
    if is_dataclass(value):
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        if is_open:
            given = {f.name: given[f.name] for f in fields(value) if f.init and given[f.name] != f.default}
        filled = {name: _value(part, is_open) for name, part in given.items()}
        return {"_target_": _path(type(value)), **filled} if is_open else node(type(value))(**filled)
    if isinstance(value, (tuple, list)):
        return [_value(item, is_open) for item in value]
    if isinstance(value, Mapping):
        return {key: _value(item, is_open) for key, item in value.items()}
    return value


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
