"""``python -m acestep convert``: writes a checkpoint in another layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.cli.command import add_command


def convert(options: argparse.Namespace) -> int:
    """Write a checkpoint in another layout.

    Write a checkpoint in another layout, tensor by tensor. Reads published folders, diffusers pipelines and run
    folders; values are copied bit for bit, unless --dtype is given.
    """
    from acestep.pipeline.build import named_dtype
    from acestep.weights.open import open_checkpoint
    from acestep.weights.save import save_checkpoint

    check_new(options.target, "folder")
    dtype = named_dtype(options.dtype) if options.dtype else None
    print(save_checkpoint(open_checkpoint(options.source), options.target, options.to, dtype, options.base))
    return 0


def check_new(target: Path, kind: str) -> None:
    """Raises ``ValueError`` if ``target`` exists."""
    if target.exists():
        raise ValueError(f"target={target}: exists; name a new {kind}")


def add_convert(commands: Any) -> None:
    command = add_command(commands, convert)
    command.add_argument("source", help="checkpoint folder, run folder, or the name of a shipped one")
    command.add_argument("target", type=Path, help="folder to write; must not exist")
    command.add_argument("--to", default="native", help="native, upstream or diffusers (default native)")
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: unchanged)")
    command.add_argument("--base", type=Path, help="a checkpoint beside the target: write only what differs from it")
