"""From the groups that are named after a sampler's parts to a sampler, around the one that a checkpoint brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

from acestep import flow
from acestep.config.run import build
from acestep.flow import Sampler

PARTS = tuple(field.name for field in fields(Sampler))
PRESETS = "sampler"
"""The group whose options set all parts at once."""


def build_sampler(cfg: Mapping[str, Any], own: Sampler) -> Sampler:
    """The sampler that ``cfg`` asks for.

    A group left at ``own`` takes the part of ``own``, the checkpoint's sampler, with those fields replaced that are
    given: ``guidance.scale=4`` changes the scale of whatever guidance the checkpoint brings. ``sampler=NAME`` chooses
    all parts at once, and each can still be given.
    """
    return replace(own, **{part: _part(part, cfg[part], getattr(own, part)) for part in PARTS})


def describe(value: Any) -> Any:
    """``value`` as plain data that ``build`` reads back: dataclasses as ``_target_`` and fields, enums by name."""
    if is_dataclass(value):
        described = {field.name: describe(getattr(value, field.name)) for field in fields(value) if field.init}
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **described}
    if isinstance(value, Enum):
        return value.name
    return [describe(item) for item in value] if isinstance(value, (tuple, list)) else value


def _part(name: str, node: Any, own: Any) -> Any:
    if node is None:
        return own
    if isinstance(own, bool):
        if not isinstance(node, bool):
            raise ValueError(f"{name}={node}: need true or false, or null for the checkpoint's own")
        return node
    if not isinstance(node, Mapping):
        raise ValueError(f"{name}={node}: need an option of configs/{name}, or its fields as {name}.FIELD=VALUE")
    if "_target_" in node:
        _refuse_foreign(name, node)
        return build(node)
    given = {key: value for key, value in node.items() if value is not None}
    known = {field.name for field in fields(own)}
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{name}.{key}={value}: the checkpoint's own {name} is {type(own).__name__}, which has no {key}; "
                f"choose another with {name}=..."
            )
    try:
        return replace(own, **given)
    except TypeError as error:
        said = ", ".join(f"{name}.{key}={value}" for key, value in given.items())
        raise ValueError(f"{said}: not of the kind that {type(own).__name__} takes ({error})") from error


def _refuse_foreign(name: str, node: Any) -> None:
    """Refuse a class that is not of ``acestep.flow``: sidecars are files that people exchange, and must run nothing."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        module, _, cls = str(target).rpartition(".")
        is_ours = module.split(".")[:2] == ["acestep", "flow"] and isinstance(getattr(flow, cls, None), type)
        if target is not None and not is_ours:
            raise ValueError(f"{name}._target_={target}: no part of a sampler; need a class of acestep.flow")
    for inner in node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ():
        _refuse_foreign(name, inner)
