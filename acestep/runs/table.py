"""Reproducible numbers of runs, and a folder of runs as a table: a row for each training and each sweep point."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from acestep.evaluation.results import HIGHEST, LOWEST, SUMMARY
from acestep.evaluation.sweep import is_number
from acestep.files import atomic, read_json
from acestep.runs.status import STATUS, RunState, RunStatus, read_status
from acestep.training.loggers import read_table

TABLE = "sweep.parquet"
FOLDER_KEYS = {"run.dir", "out", "resume", "score", "hydra.sweep.dir"}
"""Overrides that name folders, and are no settings of a run."""
REPRODUCIBLE = ("val/", "score/", "train/loss")
"""Prefixes of a training's metrics that measure quality; the others are times and diagnostics."""


@dataclass(frozen=True)
class RunRow:
    """A run, or a sweep point of an evaluation: what was swept, and its numbers.

    Attributes:
        run: name of its folder.
        state: whether and how it ended.
        error: message of the error that ended it.
        settings: values of the swept keys.
        numbers: its metrics, by name.
        command: command line that repeats it.
    """

    run: str
    state: RunState
    error: str
    settings: Mapping[str, Any]
    numbers: Mapping[str, float]
    command: str


@dataclass(frozen=True)
class SweepTable:
    """All runs of a folder, sorted by their settings, so that the order in which they ran does not matter.

    Attributes:
        folder: of the sweep.
        swept: keys in which the rows differ.
        shared: overrides that all runs share.
        metrics: names of the numbers; runs are ranked by the first.
        goal: whether high or low values of the first metric are good.
        rows: the table.
        curves: metrics of trainings, by run, name and step.
    """

    folder: Path
    swept: Sequence[str]
    shared: Sequence[str]
    metrics: Sequence[str]
    goal: str
    rows: Sequence[RunRow]
    curves: Mapping[str, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)

    def ranked(self) -> list[RunRow]:
        """Finished rows that have the first metric, the best first."""
        if not self.metrics:
            return []
        metric, sign = self.metrics[0], 1 if self.goal == LOWEST else -1
        rows = [row for row in self.rows if row.state is RunState.finished and metric in row.numbers]
        return sorted(rows, key=lambda row: sign * row.numbers[metric])

    def write(self) -> Path:
        """Write ``sweep.parquet``, which depends on settings and results alone; returns its path."""
        path = self.folder / TABLE
        columns = {
            "run": [row.run for row in self.rows],
            "state": [row.state.value for row in self.rows],
            "error": [row.error or None for row in self.rows],
            **{key: _one_type([row.settings.get(key) for row in self.rows]) for key in self.swept},
            **{name: _one_type([row.numbers.get(name) for row in self.rows]) for name in self.metrics},
            "command": [row.command for row in self.rows],
        }
        with atomic(path) as aside:
            pq.write_table(pa.table(columns), aside)
        return path


def metric_curves(folder: Path) -> dict[str, dict[int, float]]:
    """A training's metrics by name and step; empty for an evaluation."""
    return {name: values for name, values in read_table(folder).items() if name.startswith(REPRODUCIBLE) and values}


def scores_by_setting(folder: Path) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Settings and numbers: one pair for a training, one for each sweep point of an evaluation."""
    if not (folder / SUMMARY).is_file():
        return [({}, {name: values[max(values)] for name, values in sorted(metric_curves(folder).items())})]
    pairs = []
    for point in read_json(folder / SUMMARY)["cells"]:
        numbers = {name: score["mean"] for name, score in point["scores"].items()} | point["sets"]
        pairs.append((dict(point["settings"]), {name: value for name, value in numbers.items() if value is not None}))
    return pairs


def metric_goal(folder: Path, name: str) -> str:
    """Whether high or low values of a run's metric are good."""
    if not (folder / SUMMARY).is_file():
        return LOWEST if "loss" in name else HIGHEST
    goals: dict[str, str] = read_json(folder / SUMMARY)["setting"]["goals"]
    return goals.get(name.partition(".")[0], HIGHEST)


def best_score(folder: Path, name: str | None) -> float | None:
    """The best value of a metric over all sweep points, by default of the first metric; ``None`` without metrics.

    Raises:
        ValueError: if the run has no metric ``name``.
    """
    numbers = [one for _, one in scores_by_setting(folder)]
    if name is None:
        name = next((metric for one in numbers for metric in one), "")
    values = [one[name] for one in numbers if name in one]
    if values:
        return (min if metric_goal(folder, name) == LOWEST else max)(values)
    names = sorted({metric for one in numbers for metric in one})
    if names:
        raise ValueError(f"score={name}: the run has no such metric; it has {', '.join(names)}")
    return None


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds folders of runs."""
    return folder.is_dir() and any(folder.glob(f"*/{STATUS}"))


def read_sweep(folder: Path, score: str | None = None) -> SweepTable:
    """The runs in ``folder``.

    Args:
        folder: of the sweep.
        score: metric to rank by; by default a training's validation loss or an evaluation's first metric.

    Raises:
        ValueError: if there is no run, or none has ``score``.
    """
    folders = sorted(path.parent for path in folder.glob(f"*/{STATUS}"))
    statuses = {run: status for run in folders if (status := read_status(run))}
    if not statuses:
        raise ValueError(f"{folder}: holds no runs; name what was hydra.sweep.dir in train.py -m or evaluate.py -m")
    settings = {run: _parse_overrides(status.overrides) for run, status in statuses.items()}
    keys = list(dict.fromkeys(key for one in settings.values() for key in one if key not in FOLDER_KEYS))
    swept = [key for key in keys if len({repr(one.get(key)) for one in settings.values()}) > 1]
    rows = [
        RunRow(
            run.name,
            status.state,
            status.error,
            {**{key: settings[run].get(key) for key in swept}, **point},
            numbers,
            command_of(status),
        )
        for run, status in statuses.items()
        for point, numbers in (scores_by_setting(run) if status.state is RunState.finished else [({}, {})])
    ]
    swept = list(dict.fromkeys([*swept, *(key for row in rows for key in row.settings)]))
    metrics = _ranking_first(list(dict.fromkeys(name for row in rows for name in row.numbers)), score)
    first = next(iter(statuses))
    return SweepTable(
        folder=folder,
        swept=swept,
        shared=[one for one in statuses[first].overrides if _override_key(one) not in {*swept, *FOLDER_KEYS}],
        metrics=metrics,
        goal=metric_goal(first, metrics[0]) if metrics else HIGHEST,
        rows=sorted(rows, key=lambda row: [sort_key(row.settings.get(key)) for key in swept]),
        curves={run.name: metric_curves(run) for run in statuses},
    )


def command_of(status: RunStatus) -> str:
    """Command line that repeats the run without its sweep."""
    is_training = status.main == "train"
    dropped = FOLDER_KEYS | ({"sweep"} if is_training else set())
    overrides = [one for one in status.overrides if _override_key(one) not in dropped]
    return shlex.join(["python", f"{status.main}.py", *overrides, *([] if is_training else ["out=runs/again"])])


def sort_key(value: Any) -> tuple[bool, float, str]:
    """Sorts numbers by size, and other values after them as text."""
    return (False, float(value), "") if is_number(value) else (True, 0.0, str(value))


def _override_key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    return {_override_key(one): _parse_value(one.partition("=")[2]) for one in overrides}


def _parse_value(text: str) -> Any:
    """A value of the command line as a number or boolean, or as its text."""
    try:
        value = yaml.safe_load(text)
        # YAML 1.1 reads 1e-3 as text.
        return float(value) if isinstance(value, str) else value if isinstance(value, int | float) else text
    except (yaml.YAMLError, ValueError):
        return text


def _ranking_first(metrics: list[str], score: str | None) -> list[str]:
    """``metrics`` with the one to rank by first."""
    first = score or ("val/loss" if "val/loss" in metrics else None)
    if first is None:
        return metrics
    if first not in metrics:
        raise ValueError(f"--score {first}: no run has it; there are {', '.join(metrics) or 'no numbers yet'}")
    return [first, *(name for name in metrics if name != first)]


def _one_type(values: Sequence[Any]) -> list[Any]:
    """A column that Parquet can hold: all numbers as floats, or, where types are mixed, all values as text."""
    column = [
        float(value) if is_number(value) else value if value is None or isinstance(value, bool | str) else str(value)
        for value in values
    ]
    is_mixed = len({float if isinstance(value, bool) else type(value) for value in column} - {type(None)}) > 1
    return [str(value) if value is not None else None for value in values] if is_mixed else column
