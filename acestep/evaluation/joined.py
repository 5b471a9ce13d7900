"""Evaluations from several checkpoints as one, and evaluations of yesterday from their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from acestep.evaluation.results import Results, Setting
from acestep.evaluation.rows import row_of
from acestep.evaluation.sweep import CEILING


def joined(found: Mapping[str, Results], axis: str = "weights") -> Results:
    """Results of several checkpoints, or whatever ``axis`` says, on the same prompts as one sweep, ``axis`` outermost.

    The ceiling is the first checkpoint's: the recordings through its autoencoder.
    """
    parts = list(found.items())
    first = parts[0][1]
    cells: dict[str, Mapping[str, Any]] = {}
    rows, sets, halves = [], {}, {}
    for name, results in parts:
        labels = {label: _label(axis, name, label, results) for label in results.cells}
        cells |= {labels[label]: {axis: name, **results.setting.cells[label]} for label in results.cells}
        rows += [replace(row, cell=labels[row.cell]) for row in results.rows if row.cell in labels]
        sets |= {labels[label]: results.sets[label] for label in results.cells if label in results.sets}
        halves |= {labels[label]: results.halves[label] for label in results.cells if label in results.halves}
    rows += [row for row in first.rows if row.cell == CEILING]
    sets |= {CEILING: first.sets[CEILING]} if CEILING in first.sets else {}
    setting = replace(
        first.setting,
        weights=", ".join(found) if axis == "weights" else first.setting.weights,
        fingerprint=", ".join(results.setting.fingerprint for results in found.values()),
        cells=cells,
        left_out={name: why for results in found.values() for name, why in results.setting.left_out.items()},
    )
    blocks = {
        block: {name: results.blocks[block] for name, results in found.items() if block in results.blocks}
        for block in dict.fromkeys(block for results in found.values() for block in results.blocks)
    }
    return Results(setting, rows, sets, halves, blocks)


def read_results(folder: str | Path) -> Results:
    """What :meth:`Results.write` left in ``folder``. Raises ``ValueError`` if there is nothing."""
    folder = Path(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        table = pq.read_table(folder / "songs.parquet").to_pylist()
    except FileNotFoundError as error:
        raise ValueError(f"compare={folder}: no finished evaluation there ({error.filename} is missing)") from error
    known = {field.name for field in fields(Setting)}
    setting = Setting(**{name: value for name, value in summary["setting"].items() if name in known})
    cells = [*summary["cells"], *([summary["ceiling"]] if summary["ceiling"] else [])]
    columns = list(cells[0]["scores"])
    sets = {cell["label"]: _by_metric(cell["sets"]) for cell in cells}
    halves = {cell["label"]: cell.get("halves", {}) for cell in cells}
    return Results(setting, [row_of(line, columns, folder) for line in table], sets, halves)


def named_results(folders: Sequence[str | Path]) -> dict[str, Results]:
    """What :func:`read_results` finds in each folder, by as much of its path's end as tells it from the others.

    A mode of ``memory=`` that is not ``full`` is named too.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    found = {"/".join(path.parts[-depth:]): read_results(path) for path in paths}
    return {results.setting.called(name): results for name, results in found.items()}


def _label(axis: str, name: str, label: str, results: Results) -> str:
    return f"{axis}={name}, {label}" if results.setting.cells[label] else f"{axis}={name}"


def _by_metric(values: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for column, value in values.items():
        metric, _, name = column.partition(".")
        if value is not None:
            found.setdefault(metric, {})[name] = value
    return found
