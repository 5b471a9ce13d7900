"""A folder of runs as a table: one row for each run, or for each cell of an evaluation that was one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from acestep.files import atomic
from acestep.runs.scores import curves, goal_of, rows_of
from acestep.runs.status import STATUS, State, Status, read_status

TABLE = "sweep.parquet"
PLACES = {"run.dir", "out", "resume", "score", "hydra.sweep.dir"}
"""Keys that say where a run goes, not what it is."""


@dataclass(frozen=True)
class Row:
    """One line: what was swept, and what was found."""

    run: str
    state: State
    error: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, float]
    command: str


@dataclass(frozen=True)
class Sweep:
    """All runs of a folder, in the order of their settings, however they were started and ended.

    Attributes:
        folder: of the sweep.
        swept: the settings in which its rows differ.
        shared: what all command lines say.
        metrics: names of the numbers.
        goal: whether high or low values of the first are good.
        rows: the table.
        curves: trainings' metrics by run, name and step.
    """

    folder: Path
    swept: Sequence[str]
    shared: Sequence[str]
    metrics: Sequence[str]
    goal: str
    rows: Sequence[Row]
    curves: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)

    def ranked(self) -> list[Row]:
        """Finished rows that have the first metric, the best first."""
        if not self.metrics:
            return []
        found = [row for row in self.rows if row.state is State.finished and self.metrics[0] in row.numbers]
        sign = 1 if self.goal == "lowest" else -1
        return sorted(found, key=lambda row: sign * row.numbers[self.metrics[0]])

    def write(self) -> Path:
        """``sweep.parquet``: settings and numbers, which the same runs give again; returns its path."""
        path = self.folder / TABLE
        lines = [
            {
                "run": row.run,
                "state": row.state.value,
                "error": row.error or None,
                **{key: _cell(row.settings.get(key)) for key in self.swept},
                **{name: row.numbers.get(name) for name in self.metrics},
                "command": row.command,
            }
            for row in self.rows
        ]
        with atomic(path) as aside:
            pq.write_table(pa.Table.from_pylist(_one_type(lines)), aside)
        return path


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds runs of a sweep, or any runs."""
    return folder.is_dir() and any(folder.glob(f"*/{STATUS}"))


def read_sweep(folder: Path, score: str | None = None) -> Sweep:
    """The runs in ``folder``.

    Args:
        folder: of the sweep.
        score: the metric to rank by; ``None`` takes a training's validation loss or an evaluation's first.

    Raises:
        ValueError: if there is none, or none has ``score``.
    """
    found = {path.parent: read_status(path.parent) for path in sorted(folder.glob(f"*/{STATUS}"))}
    statuses = {run: status for run, status in found.items() if status}
    if not statuses:
        raise ValueError(f"{folder}: holds no runs; name what was hydra.sweep.dir in train.py -m or evaluate.py -m")
    said = {run: _said(status.overrides) for run, status in statuses.items()}
    keys = list(dict.fromkeys(key for one in said.values() for key in one if key not in PLACES))
    swept = [key for key in keys if len({repr(one.get(key)) for one in said.values()}) > 1]
    rows = [
        Row(
            run.name,
            status.state,
            status.error,
            {**{key: said[run].get(key) for key in swept}, **cell},
            numbers,
            command,
        )
        for run, status in statuses.items()
        for command in [command_of(status)]
        for cell, numbers in (rows_of(run) if status.state is State.finished else [({}, {})])
    ]
    swept = list(dict.fromkeys([*swept, *(key for row in rows for key in row.settings)]))
    metrics = _ordered(list(dict.fromkeys(name for row in rows for name in row.numbers)), score)
    first = next(iter(statuses))
    return Sweep(
        folder=folder,
        swept=swept,
        shared=[word for word in statuses[first].overrides if _key(word) not in {*swept, *PLACES}],
        metrics=metrics,
        goal=goal_of(first, metrics[0]) if metrics else "highest",
        rows=sorted(rows, key=lambda row: [_order(row.settings.get(key)) for key in swept]),
        curves={run.name: curves(run) for run in statuses},
    )


def command_of(status: Status) -> str:
    """One line that repeats the run by itself."""
    dropped = PLACES | ({"sweep"} if status.main == "train" else set())
    words = [word for word in status.overrides if _key(word) not in dropped]
    place = [] if status.main == "train" else ["out=runs/again"]
    return shlex.join(["python", f"{status.main}.py", *words, *place])


def _said(overrides: Sequence[str]) -> dict[str, Any]:
    pairs = (word.partition("=") for word in overrides)
    return {key.lstrip("+~"): _value(text) for key, _, text in pairs}


def _value(text: str) -> Any:
    """A word of the command line as a number, or as it stands."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        # YAML 1.1 takes 1e-3 for a word.
        return float(found) if isinstance(found, str) else found if isinstance(found, int | float) else text
    except ValueError:
        return text


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _ordered(metrics: list[str], score: str | None) -> list[str]:
    """The metric to rank by first."""
    wanted = score or ("val/loss" if "val/loss" in metrics else None)
    if wanted is None:
        return metrics
    if wanted not in metrics:
        raise ValueError(f"--score {wanted}: no run has it; there are {', '.join(metrics) or 'no numbers yet'}")
    return [wanted, *(name for name in metrics if name != wanted)]


def _order(value: Any) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (not is_number, float(value) if is_number else 0.0, "" if is_number else str(value))


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _one_type(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Columns of mixed types as text, which a table can hold."""
    mixed = {
        key
        for key in lines[0]
        if len({float if isinstance(line[key], int | float) else type(line[key]) for line in lines} - {type(None)}) > 1
    }
    return [
        {key: str(value) if key in mixed and value is not None else _wide(value) for key, value in line.items()}
        for line in lines
    ]


def _wide(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
