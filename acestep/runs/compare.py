"""A run and the same run again: weights, songs and metrics, bit by bit, or within a tolerance on another machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from acestep.data.files import file_hash
from acestep.files import atomic
from acestep.runs.changes import changes, data_changes, same_kind, tree_notes
from acestep.runs.record import read_data_files, read_record
from acestep.runs.scores import SUMMARY, curves, rows_of

WEIGHT_TOLERANCE = 1e-3
"""Largest norm of a tensor's difference over its own norm, between machines of two kinds."""
METRIC_TOLERANCE = 1e-2
"""Largest relative difference of a metric between machines of two kinds."""
FILE = "reproduction.json"


@dataclass(frozen=True)
class Comparison:
    """What came out of a run done again.

    Attributes:
        changed: what decides the result and is not as it was.
        notes: what does not, and is worth knowing.
        same_kind: whether equal bits were asked for, or closeness.
        compared: how many tensors, metrics and songs stood on both sides.
        different: those that differ by more than is allowed, the farthest first.
        farthest: the largest relative difference found.
    """

    changed: list[str]
    notes: list[str]
    same_kind: bool
    compared: dict[str, int]
    different: list[str]
    farthest: float

    @property
    def same(self) -> bool:
        """Whether the run gave what it had given."""
        return not self.different

    def lines(self) -> list[str]:
        """For a person."""
        counts = ", ".join(f"{count} {what}" for what, count in self.compared.items())
        if not self.same:
            said = f"NOT reproduced: {len(self.different)} of {counts} differ, first {'; '.join(self.different[:3])}"
        elif not self.farthest:
            said = f"reproduced bit for bit: {counts}"
        else:
            said = f"reproduced within tolerance on a machine of another kind: {counts}, farthest {self.farthest:.2g}"
        return [*self.notes, *(f"changed: {line}" for line in self.changed), said]


def compare(then: Path, now: Path) -> Comparison:
    """The runs in the folders ``then`` and ``now``. Raises ``ValueError`` if one is none or left no result."""
    before, after = read_record(then), read_record(now)
    kind = same_kind(before, after)
    pairs = {"tensors": _tensors(then, now), "metrics": _metrics(then, now), "songs": _songs(then, now)}
    limits = {"tensors": WEIGHT_TOLERANCE, "metrics": METRIC_TOLERANCE, "songs": 0.0}
    if not any(pairs.values()):
        raise ValueError(f"reproduce={then}: left no weights, metrics or songs to compare with; let it finish first")
    far = [
        (distance, name)
        for what, found in pairs.items()
        for name, distance in found.items()
        if distance > (0.0 if kind else limits[what])
    ]
    return Comparison(
        changed=changes(before, after) + data_changes(then, read_data_files(now)),
        notes=tree_notes(before, then),
        same_kind=kind,
        compared={what: len(found) for what, found in pairs.items() if found},
        different=[f"{name} by {distance:.2g}" for distance, name in sorted(far, reverse=True)],
        farthest=max((distance for found in pairs.values() for distance in found.values()), default=0.0),
    )


def write_comparison(found: Comparison, folder: Path) -> None:
    """Keep it beside the result."""
    values = {**asdict(found), "same": found.same}
    values["farthest"] = found.farthest if found.farthest < float("inf") else "infinite"
    with atomic(folder / FILE) as aside:
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _tensors(then: Path, now: Path) -> dict[str, float]:
    """Relative distance of every trained tensor; infinite where one side lacks it."""
    found: dict[str, float] = {}
    names = {path.relative_to(side) for side in (then, now) for path in (side / "weights").rglob("*.safetensors")}
    for name in sorted(names):
        if not ((then / name).is_file() and (now / name).is_file()):
            found[name.as_posix()] = float("inf")
            continue
        with safe_open(then / name, "pt") as a, safe_open(now / name, "pt") as b:
            for key in sorted(set(a.keys()) | set(b.keys())):
                both = key in a.keys() and key in b.keys()  # noqa: SIM118  not a mapping
                found[key] = _distance(a.get_tensor(key), b.get_tensor(key)) if both else float("inf")
    return found


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
        return 0.0
    a, b = a.double(), b.double()
    return max(float((a - b).norm() / a.norm().clamp_min(1e-12)), 1e-300)


def _metrics(then: Path, now: Path) -> dict[str, float]:
    """Relative difference of every metric at every step or in every cell."""
    return _between(_numbers(then), _numbers(now))


def _numbers(folder: Path) -> dict[str, float]:
    if (folder / SUMMARY).is_file():
        return {
            f"{name} at {settings or 'the only cell'}": value
            for settings, numbers in rows_of(folder)
            for name, value in numbers.items()
        }
    return {f"{name} at step {step}": value for name, one in curves(folder).items() for step, value in one.items()}


def _between(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {
        key: abs(a[key] - b[key]) / max(abs(a[key]), 1e-12) if key in a and key in b else float("inf")
        for key in sorted(a.keys() | b.keys())
    }


def _songs(then: Path, now: Path) -> dict[str, float]:
    """Zero for every song that is the same file, infinite for others; between kinds of machine none is compared."""
    if not same_kind(read_record(then), read_record(now)):
        return {}
    here, there = ({path.name: path for path in sorted((side / "clips").rglob("*.flac"))} for side in (then, now))
    equal = {name for name in here.keys() & there.keys() if file_hash(here[name]) == file_hash(there[name])}
    return {name: 0.0 if name in equal else float("inf") for name in sorted(here.keys() | there.keys())}
