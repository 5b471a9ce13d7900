"""The points of a sweep: each is a sampler and changes to every song, under which all prompts are generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from typing import Any

from acestep.flow.sampler import Sampler
from acestep.songs import AdapterUse, Song

CEILING = "ceiling"
"""Label of the reference recordings after encoding and decoding by the autoencoder."""
SONG, ADAPTERS = "song", "adapters"
"""Keys of a sweep that change the request: ``sweep.song.seconds=[30,120]``, and lists of adapters."""


@dataclass(frozen=True)
class SweepPoint:
    """One setting under which every prompt is generated.

    Attributes:
        label: its name in tables, such as ``guidance.scale=4``.
        settings: the swept values, by dotted key; empty without a sweep.
        sampler: generates the songs; ``None`` encodes and decodes the recordings instead.
        song: values that replace fields of every prompt's song, its adapters among them.
    """

    label: str
    settings: dict[str, Any]
    sampler: Sampler | None
    song: dict[str, Any] = field(default_factory=dict)


def sweep_points(sampler: Sampler, sweep: Mapping[str, Any]) -> list[SweepPoint]:
    """Every combination of the sweep's values, the last key varying fastest; only ``sampler`` without a sweep.

    Args:
        sampler: the values of all fields that are not swept.
        sweep: mirrors the sampler's fields, with lists at its leaves: ``{"guidance": {"scale": [1, 4, 7]}}``. A leaf
            ``None`` leaves its field unchanged. Components can be swept: ``{"solver": [Euler(), Heun()]}``. ``song``
            mirrors a song's fields; a value of ``adapters`` is a list of ``{path, scale}``, empty for none.

    Raises:
        ValueError: a key is no field, a value is of another type, or a list is empty.
    """
    axes = dict(_leaves(sweep))
    if not axes:
        return [SweepPoint("sampler", {}, sampler)]
    points = []
    for values in product(*axes.values()):
        changed, settings = sampler, {}
        song: dict[str, Any] = {}
        for key, value in zip(axes, values, strict=True):
            settings[key] = _format_component(value) if is_dataclass(value) else value
            if key == ADAPTERS:
                song[ADAPTERS] = _adapters(value)
                settings[key] = " + ".join(f"{use.path} x {use.scale:g}" for use in song[ADAPTERS]) or "none"
            elif key.startswith(f"{SONG}."):
                song[_song_field(key)] = value
            else:
                changed = _replace_nested(changed, key, key.split("."), value)
        label = ", ".join(f"{key}={format_value(value)}" for key, value in settings.items())
        points.append(SweepPoint(label, settings, changed, song))
    return points


def format_value(value: Any) -> str:
    """A value in a label: floats in ``g`` format."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_number(value: Any) -> bool:
    """Whether ``value`` is an integer or a float; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _song_field(key: str) -> str:
    name, names = key.removeprefix(f"{SONG}."), [one.name for one in fields(Song)]
    if name not in names:
        raise ValueError(f"sweep.{key}: a song has no {name}; it has {', '.join(names)}")
    return name


def _adapters(value: Any) -> tuple[AdapterUse, ...]:
    try:
        return tuple(AdapterUse(**use) for use in value)
    except TypeError as error:
        raise ValueError(
            f"sweep.adapters: {value} is no list of adapters; each value is one, such as [{{path: FILE, scale: 0.5}}]"
        ) from error


def _format_component(value: Any) -> str:
    """A dataclass as its class and the fields that differ from their defaults."""
    given = [f for f in fields(value) if f.init and getattr(value, f.name) != f.default]
    return " ".join([type(value).__name__, *(f"{f.name}={format_value(getattr(value, f.name))}" for f in given)])


def _leaves(sweep: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    for key, value in sweep.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            values = list(value) if isinstance(value, list | tuple) else [value]
            if not values:
                raise ValueError(f"sweep.{prefix}{key}=[]: need at least one value; null leaves it as it is")
            yield f"{prefix}{key}", values


def _replace_nested(component: Any, key: str, names: Sequence[str], value: Any) -> Any:
    """``component`` with the field at the end of ``names`` replaced; its own checks decide which values are valid."""
    name, *rest = names
    if not is_dataclass(component) or not hasattr(component, name):
        raise ValueError(
            f"sweep.{key}: {type(component).__name__} has no field {name}; sweep a field of the chosen sampler"
        )
    new = _replace_nested(getattr(component, name), key, rest, value) if rest else value
    try:
        return replace(component, **{name: new})  # type: ignore[type-var]  # is_dataclass leaves its type open
    except TypeError as error:
        raise ValueError(f"sweep.{key}={value}: has the wrong type for {type(component).__name__}.{name}") from error
