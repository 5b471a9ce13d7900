"""``python -m acestep report``: finished evaluations side by side, or a sweep, in one page; no song is made for it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

OfSweep = Callable[[Path, str | None], Path | None]
"""Writes the report of the sweep in a folder; ``None`` where it holds none."""


def report(options: argparse.Namespace, of_sweep: OfSweep) -> int:
    """Write the page."""
    from acestep.evaluation.report.html import write_comparison

    if len(options.folders) == 1 and (page := of_sweep(Path(options.folders[0]), options.score)):
        sys.stdout.write(f"{page}\n")
        return 0
    if options.out is None and len(options.folders) > 1:
        raise ValueError("--out: not given; several evaluations need a folder of their own for their report")
    path = write_comparison(options.folders, options.out or Path(options.folders[0]), options.songs)
    sys.stdout.write(f"{path}\n")
    return 0


def report_command(commands: Any, of_sweep: OfSweep) -> None:
    """Add the command to a parser's."""
    command = commands.add_parser(
        "report",
        help="write one page about a sweep, or about one or several finished evaluations",
        description="Read what evaluate.py left in each FOLDER and write report.html and plots/ to --out: curves over "
        "the sweep, every evaluation at its best setting, differences from the first prompt by prompt, and songs to "
        "hear side by side. The FOLDER of a sweep (train.py -m, evaluate.py -m) gets sweep.parquet, and a page of "
        "curves, the best runs, the failed ones with their errors, and commands that repeat them. Nothing is made or "
        "scored again.",
    )
    command.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="what was out= in evaluate.py, or hydra.sweep.dir= in a sweep"
    )
    command.add_argument("--score", metavar="METRIC", help="what a sweep's runs are ranked by (default their first)")
    command.add_argument("--out", type=Path, help="where to; one evaluation's report goes to its own folder by default")
    command.add_argument("--songs", type=int, default=8, help="prompts with players (default 8)")
    command.set_defaults(command=partial(report, of_sweep=of_sweep))
