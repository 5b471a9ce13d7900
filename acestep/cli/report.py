"""``python -m acestep report``: one page about finished evaluations, or about a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.cli.command import add_command


def report(options: argparse.Namespace) -> int:
    """Write one page about a sweep, or about one or several finished evaluations.

    Read what evaluate.py wrote to each FOLDER and write report.html and plots/ to --out: curves over the sweep, every
    evaluation at its best setting, differences from the first prompt by prompt, and audio players side by side. For the
    FOLDER of a sweep (train.py -m, evaluate.py -m): sweep.parquet, and a page with curves, the best runs, the failed
    ones with their errors, and commands that repeat them. Nothing is generated or scored again.
    """
    from acestep.runs.table import is_sweep, read_sweep

    first = Path(options.folders[0])
    if len(options.folders) == 1 and is_sweep(first):
        from acestep.runs.sweep_report import write_sweep_report  # here, since matplotlib takes seconds to import

        sweep = read_sweep(first, options.score)
        print(sweep.write())
        print(write_sweep_report(sweep))
        return 0
    if options.out is None and len(options.folders) > 1:
        raise ValueError("--out: not given; a report on several evaluations needs a folder of its own")
    from acestep.evaluation.report.html import write_comparison_report

    print(write_comparison_report(options.folders, options.out or first, options.songs))
    return 0


def add_report(commands: Any) -> None:
    command = add_command(commands, report)
    command.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="out= of evaluate.py, or hydra.sweep.dir= of a sweep"
    )
    command.add_argument("--score", metavar="METRIC", help="metric that ranks a sweep's runs (default: their first)")
    command.add_argument("--out", type=Path, help="folder to write to (default: that of the evaluation)")
    command.add_argument("--songs", type=int, default=8, help="prompts with players (default 8)")
