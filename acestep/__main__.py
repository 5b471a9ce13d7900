"""``python -m acestep COMMAND``: commands beside training, evaluation and inference.

Each command imports what it needs when it runs, so that ``--help`` does not import torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from acestep.cli.bench import add_bench
from acestep.cli.convert import add_convert
from acestep.cli.describe import add_describe
from acestep.cli.export import add_merge_and_export
from acestep.cli.micro import add_micro
from acestep.cli.preprocess import add_preprocess
from acestep.cli.publish import add_publish
from acestep.cli.report import add_report
from acestep.cli.verify import add_verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors of the user are printed as one sentence."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: finished results are kept, and the same command continues from there", file=sys.stderr)
        return 130
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``command``, a function of the parsed options."""
    parser = argparse.ArgumentParser(
        prog="python -m acestep",
        description="Commands beside train.py, evaluate.py and infer.py, which train, evaluate and generate.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        add_micro,
        add_preprocess,
        add_convert,
        add_verify,
        add_describe,
        add_merge_and_export,
        add_report,
        add_publish,
        add_bench,
    ):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
