"""The columns of an evaluation: one sampler each, made from a base sampler by the values of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from typing import Any

from acestep.flow.sampler import Sampler
from acestep.types import AdapterUse, Song

CEILING = "ceiling"
SONG, ADAPTERS = "song", "adapters"
"""The parts of a sweep that change what is asked for: ``sweep.song.seconds=[30,120]``, and lists of adapters."""


@dataclass(frozen=True)
class Cell:
    """One setting under which every prompt is generated.

    Attributes:
        label: its name in tables, such as ``guidance.scale=4``.
        settings: what the sweep set, by dotted path; empty without a sweep.
        sampler: how songs are made. ``None`` makes none: the recordings through the autoencoder, the best that any
            sampler could do.
        song: fields of every prompt's song that are replaced, its adapters among them.
    """

    label: str
    settings: dict[str, Any]
    sampler: Sampler | None
    song: dict[str, Any] = field(default_factory=dict)


def cells_of(sampler: Sampler, sweep: Mapping[str, Any]) -> list[Cell]:
    """Every combination of the sweep's values, the last key varying fastest; ``sampler`` alone without a sweep.

    Args:
        sampler: what holds wherever the sweep says nothing.
        sweep: mirrors the sampler's fields, with lists at its leaves: ``{"guidance": {"scale": [1, 4, 7]}}``. A leaf
            ``None`` leaves its field as it is. Whole parts may be swept: ``{"solver": [Euler(), Heun()]}``. ``song``
            mirrors a song's fields; a value of ``adapters`` is a list of ``{path, scale}``, empty for none.
    """
    axes = dict(_leaves(sweep))
    if not axes:
        return [Cell("sampler", {}, sampler)]
    cells = []
    for values in product(*axes.values()):
        changed, settings = sampler, {}
        song: dict[str, Any] = {}
        for path, value in zip(axes, values, strict=True):
            settings[path] = _named(value)
            if path == ADAPTERS:
                song[ADAPTERS] = _adapters(value)
                settings[path] = " + ".join(f"{use.path} x {use.scale:g}" for use in song[ADAPTERS]) or "none"
            elif path.startswith(f"{SONG}."):
                song[_song_field(path)] = value
            else:
                changed = _with(changed, path, path.split("."), value)
        label = ", ".join(f"{path}={_plain(value)}" for path, value in settings.items())
        cells.append(Cell(label, settings, changed, song))
    return cells


def _song_field(path: str) -> str:
    name = path.removeprefix(f"{SONG}.")
    if name not in {field.name for field in fields(Song)}:
        raise ValueError(
            f"sweep.{path}: a song has no {name}; it has {', '.join(field.name for field in fields(Song))}"
        )
    return name


def _adapters(value: Any) -> tuple[AdapterUse, ...]:
    try:
        return tuple(AdapterUse(**use) for use in value)
    except TypeError as error:
        raise ValueError(
            f"sweep.adapters: {value} is no list of adapters; each value is one, such as [{{path: FILE, scale: 0.5}}]"
        ) from error


def _named(value: Any) -> Any:
    """A swept part as its class and what is not its default; other values as they are."""
    if not is_dataclass(value):
        return value
    given = [f for f in fields(value) if f.init and getattr(value, f.name) != f.default]
    return " ".join([type(value).__name__, *(f"{f.name}={_plain(getattr(value, f.name))}" for f in given)])


def _leaves(sweep: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    for key, value in sweep.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            values = list(value) if isinstance(value, list | tuple) else [value]
            if not values:
                raise ValueError(f"sweep.{prefix}{key}=[]: need at least one value; null leaves it as it is")
            yield f"{prefix}{key}", values


def _with(part: Any, path: str, keys: Sequence[str], value: Any) -> Any:
    """``part`` with the field at the end of ``keys`` replaced; its own checks decide what the field takes."""
    key, *rest = keys
    if not is_dataclass(part) or not hasattr(part, key):
        raise ValueError(f"sweep.{path}: {type(part).__name__} has no field {key}; sweep a field of the chosen sampler")
    new = _with(getattr(part, key), path, rest, value) if rest else value
    try:
        return replace(part, **{key: new})
    except TypeError as error:
        raise ValueError(f"sweep.{path}={value}: not of the kind that {type(part).__name__}.{key} takes") from error


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
