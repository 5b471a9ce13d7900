"""Subcommands of ``python -m acestep`` whose help is the docstring of the function that they call."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any, run: Callable[[argparse.Namespace], int], name: str | None = None
) -> argparse.ArgumentParser:
    """Add ``run`` to ``commands``: its docstring's first line is the help, the other paragraphs the description."""
    summary, _, description = (inspect.getdoc(run) or "").partition("\n\n")
    parser: argparse.ArgumentParser = commands.add_parser(
        name or run.__name__, help=summary, description=description or summary
    )
    parser.set_defaults(command=run)
    return parser
