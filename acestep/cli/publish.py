"""``python -m acestep publish``: prepares the folder of a finished run for the Hugging Face Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.cli.command import add_command


def publish(options: argparse.Namespace) -> int:
    """Prepare a finished run for the Hugging Face Hub.

    Write a folder in the Hub's format: weights as safetensors, config, a model card with a table of metrics, example
    songs, licence and training data. Nothing is uploaded without --push.
    """
    from acestep.runs.publish import Publication, push

    folder = Publication(
        run=options.run, name=options.name, licence=options.licence, evaluation=options.evaluation, songs=options.songs
    ).write(options.out or options.run / "hub")
    print(folder)
    if options.push:
        print(push(folder, options.push))
    return 0


def add_publish(commands: Any) -> None:
    command = add_command(commands, publish)
    command.add_argument("run", type=Path, help="folder of a finished run")
    command.add_argument("--out", type=Path, help="folder to write (default RUN/hub)")
    command.add_argument("--name", help="name of the model (default: the run's)")
    command.add_argument("--licence", default="unknown", help="the Hub's licence id, such as mit (default unknown)")
    command.add_argument("--evaluation", type=Path, help="folder of a finished evaluation, for metrics and songs")
    command.add_argument("--songs", type=int, default=4, help="example songs (default 4)")
    command.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the Hub")
