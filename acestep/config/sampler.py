"""The sampler of a command: the checkpoint's, with the parts and fields replaced that the config gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

from acestep import flow
from acestep.config.custom import is_custom
from acestep.config.run import build
from acestep.config.schema import load_class
from acestep.flow import Sampler

PARTS = tuple(field.name for field in fields(Sampler))
PRESETS = "sampler"
"""The group whose options set all parts at once."""


def override_sampler(cfg: Mapping[str, Any], sampler: Sampler) -> Sampler:
    """``sampler``, a checkpoint's, with the parts that ``cfg`` gives.

    A group left at ``checkpoint`` keeps the part of ``sampler``, with those fields replaced that are given:
    ``guidance.scale=4`` changes the scale of whatever guidance the checkpoint has. ``sampler=NAME`` chooses all parts
    at once, and each can still be given.
    """
    return replace(sampler, **{part: _part(part, cfg[part], getattr(sampler, part)) for part in PARTS})


def to_config(value: Any) -> Any:
    """``value`` as plain data that ``build`` reads back: dataclasses as ``_target_`` and fields, enums by name."""
    if is_dataclass(value):
        described = {field.name: to_config(getattr(value, field.name)) for field in fields(value) if field.init}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **described}
    if isinstance(value, Enum):
        return value.name
    return [to_config(item) for item in value] if isinstance(value, (tuple, list)) else value


def _part(name: str, node: Any, part: Any) -> Any:
    if node is None:
        return part
    if isinstance(part, bool):
        if not isinstance(node, bool):
            raise ValueError(f"{name}={node}: need true or false, or null for the checkpoint's")
        return node
    if not isinstance(node, Mapping):
        raise ValueError(f"{name}={node}: need an option of configs/{name}, or its fields as {name}.FIELD=VALUE")
    if "_target_" in node:
        _check_target(name, node)
        return build(node)
    given = {key: value for key, value in node.items() if value is not None}
    known = {field.name for field in fields(part)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{name}.{key}={value}: the checkpoint's {name} is {type(part).__name__}, which has no {key}; "
                f"choose another with {name}=..."
            )
    try:
        return replace(part, **given)
    except TypeError as error:
        words = ", ".join(f"{name}.{key}={value}" for key, value in given.items())
        raise ValueError(f"{words}: not of the type that {type(part).__name__} takes ({error})") from error


def _check_target(name: str, node: Mapping[str, Any]) -> None:
    """Check the class of a part, and of its own parts: one of ``acestep.flow``, or a custom dataclass.

    Sidecars hold every part by its class and fields, and may not name anything else.
    """
    target = str(node["_target_"])
    cls: Any = load_class(target, name) if is_custom(target) else getattr(flow, target.rpartition(".")[2], None)
    if is_custom(target):
        if not is_dataclass(cls) or not any("__call__" in vars(base) for base in getattr(cls, "__mro__", ())):
            raise ValueError(f"{name}._target_={target}: need a dataclass with __call__, like those of acestep.flow")
    elif not target.startswith("acestep.flow.") or not isinstance(cls, type):
        raise ValueError(f"{name}._target_={target}: need a class of acestep.flow, or a dataclass of your own")
    for inner in node.values():
        for item in inner if isinstance(inner, list | tuple) else [inner]:
            if isinstance(item, Mapping) and "_target_" in item:
                _check_target(name, item)
