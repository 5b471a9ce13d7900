"""Comparison of a run with its reproduction: weights, metrics and songs, bitwise or with a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from acestep.evaluation.results import SUMMARY
from acestep.files import file_hash, write_json
from acestep.runs.changes import data_changes, record_changes, same_machine_kind, tree_notes
from acestep.runs.record import read_data_files, read_record
from acestep.runs.table import metric_curves, scores_by_setting

TOLERANCES = {"tensors": 1e-3, "metrics": 1e-2, "songs": 0.0}
"""Largest relative difference between machines of different kinds; of tensors, by their norms."""
REPRODUCTION = "reproduction.json"


@dataclass(frozen=True)
class Reproduction:
    """Result of comparing a run with its reproduction.

    Attributes:
        changed: a line for each input that differs.
        notes: further remarks.
        same_kind: whether the machines are of the same kind, so that bitwise equality is required.
        compared: number of tensors, metrics and songs that were compared.
        different: those that differ by more than the tolerance, the largest difference first.
        farthest: the largest relative difference.
    """

    changed: list[str]
    notes: list[str]
    same_kind: bool
    compared: dict[str, int]
    different: list[str]
    farthest: float

    @property
    def same(self) -> bool:
        return not self.different

    def lines(self) -> list[str]:
        """The report to print."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.compared.items())
        if not self.same:
            result = f"NOT reproduced: {len(self.different)} of {counts} differ, first {'; '.join(self.different[:3])}"
        elif not self.farthest:
            result = f"reproduced bit for bit: {counts}"
        else:
            result = f"reproduced within tolerance on another kind of machine: {counts}, farthest {self.farthest:.2g}"
        return [*self.notes, *(f"changed: {line}" for line in self.changed), result]

    def write(self, folder: Path) -> None:
        """Write ``reproduction.json``."""
        farthest = self.farthest if math.isfinite(self.farthest) else "infinite"
        write_json(folder / REPRODUCTION, {**asdict(self), "same": self.same, "farthest": farthest})


def compare_runs(first: Path, second: Path, rename: Callable[[Any], Any] | None = None) -> Reproduction:
    """Compare the runs in two folders; ``rename`` replaces former names in a recorded config.

    Raises:
        ValueError: if one is no run, or there is no result to compare.
    """
    records = read_record(first), read_record(second)
    if rename:
        records[0]["config"] = rename(records[0]["config"])
    same_kind = same_machine_kind(*records)
    differences = {
        "tensors": _tensor_differences(first, second),
        "metrics": _metric_differences(first, second),
        "songs": _song_differences(first, second) if same_kind else {},
    }
    if not any(differences.values()):
        raise ValueError(f"reproduce={first}: left no weights, metrics or songs to compare with; let it finish first")
    too_far = [
        (difference, name)
        for kind, by_name in differences.items()
        for name, difference in by_name.items()
        if difference > (0.0 if same_kind else TOLERANCES[kind])
    ]
    return Reproduction(
        changed=record_changes(*records) + data_changes(first, read_data_files(second)),
        notes=tree_notes(records[0], first),
        same_kind=same_kind,
        compared={kind: len(by_name) for kind, by_name in differences.items() if by_name},
        different=[f"{name} by {difference:.2g}" for difference, name in sorted(too_far, reverse=True)],
        farthest=max((value for by_name in differences.values() for value in by_name.values()), default=0.0),
    )


def _tensor_differences(first: Path, second: Path) -> dict[str, float]:
    """Relative difference of every trained tensor; infinite where one run lacks it."""
    found: dict[str, float] = {}
    names = {path.relative_to(side) for side in (first, second) for path in (side / "weights").rglob("*.safetensors")}
    for name in sorted(names):
        if not ((first / name).is_file() and (second / name).is_file()):
            found[name.as_posix()] = math.inf
            continue
        with safe_open(first / name, "pt") as a, safe_open(second / name, "pt") as b:
            keys = set(a.keys()), set(b.keys())
            found |= dict.fromkeys(keys[0] ^ keys[1], math.inf)
            found |= {key: _relative_difference(a.get_tensor(key), b.get_tensor(key)) for key in keys[0] & keys[1]}
    return found


def _relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Norm of the difference over the norm of ``a``; 0 only for equal bits, infinite for other shapes or dtypes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
        return 0.0
    a, b = a.double(), b.double()
    return max(float((a - b).norm() / a.norm().clamp_min(1e-12)), 1e-300)


def _metric_differences(first: Path, second: Path) -> dict[str, float]:
    """Relative difference of every metric at every step or sweep point; infinite where one run lacks it."""
    a, b = _run_metrics(first), _run_metrics(second)
    return {
        key: abs(a[key] - b[key]) / max(abs(a[key]), 1e-12) if key in a and key in b else math.inf
        for key in sorted(a.keys() | b.keys())
    }


def _run_metrics(folder: Path) -> Mapping[str, float]:
    if (folder / SUMMARY).is_file():
        return {
            f"{name} at {settings or 'the only sweep point'}": value
            for settings, numbers in scores_by_setting(folder)
            for name, value in numbers.items()
        }
    curves = metric_curves(folder).items()
    return {f"{name} at step {step}": value for name, values in curves for step, value in values.items()}


def _song_differences(first: Path, second: Path) -> dict[str, float]:
    """0 for every song whose two files are equal, infinite for the others."""
    a, b = ({path.name: path for path in sorted((side / "clips").rglob("*.flac"))} for side in (first, second))
    equal = {name for name in a.keys() & b.keys() if file_hash(a[name]) == file_hash(b[name])}
    return {name: 0.0 if name in equal else math.inf for name in sorted(a.keys() | b.keys())}
