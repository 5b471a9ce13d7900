"""What ``python -m acestep`` does with run folders: reports of sweeps, checks, folders to publish."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def sweep_report(folder: Path, score: str | None) -> Path | None:
    """Write the table and the page of the sweep in ``folder``; nothing where it holds none."""
    from acestep.runs.table import is_sweep, read_sweep

    if not is_sweep(folder):
        return None
    from acestep.runs.page import write_sweep_report  # draws, which takes seconds to load

    sweep = read_sweep(folder, score)
    sys.stdout.write(f"{sweep.write()}\n")
    return write_sweep_report(sweep)


def check_run(folder: Path) -> int | None:
    """Say what is not as it was when the run in ``folder`` was made; the exit status, or nothing where it is no run."""
    from acestep.runs.check import check, is_run

    if not is_run(folder):
        return None
    found = check(folder)
    sys.stdout.write("".join(f"{line}\n" for line in found.lines()))
    return 0 if found.whole else 1


def publish(options: argparse.Namespace) -> int:
    """Prepare the folder, and push it where that was asked for."""
    from acestep.runs.publish import Publication, push

    folder = Publication(
        run=options.run, name=options.name, licence=options.licence, evaluation=options.evaluation, songs=options.songs
    ).write(options.out or options.run / "hub")
    sys.stdout.write(f"{folder}\n")
    if options.push:
        sys.stdout.write(f"{push(folder, options.push)}\n")
    return 0


def publish_command(commands: Any) -> None:
    """Add ``publish`` to a parser's."""
    command = commands.add_parser(
        "publish",
        help="prepare a finished run for the Hugging Face Hub",
        description="Write a folder as the Hub wants it: weights as safetensors, config, a model card with a table of "
        "metrics, songs to hear, licence and what it was trained on. Nothing leaves this machine without --push.",
    )
    command.add_argument("run", type=Path, help="folder of a finished run")
    command.add_argument("--out", type=Path, help="folder to write; default RUN/hub")
    command.add_argument("--name", help="name of the model (default the run's)")
    command.add_argument(
        "--licence", default="unknown", help="the Hub's name of its licence, such as mit (default unknown)"
    )
    command.add_argument("--evaluation", type=Path, help="folder of a finished evaluation: metrics and songs")
    command.add_argument("--songs", type=int, default=4, help="songs to hear (default 4)")
    command.add_argument("--push", metavar="OWNER/NAME", help="then upload it to this repository of the Hub")
    command.set_defaults(command=publish)
