"""``python -m acestep verify``: identifies a checkpoint and checks that it is complete."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.cli.command import add_command


def verify(options: argparse.Namespace) -> int:
    """Identify a checkpoint and check that it is complete.

    Name a checkpoint's family, count its parameters, hash every tensor, check that all values are finite, and run one
    fixed forward pass, whose fingerprint is compared with --expect or with the file FOLDER.fingerprint. For a run
    folder, also report whether its result, data, base weights and the installed packages have changed, and whether it
    was started from uncommitted changes. Exit status: 0 complete and as expected, 1 not.
    """
    from acestep.verify import check_fingerprint, fingerprint_file, verify_checkpoint
    from acestep.weights.native import is_native

    status = _check_run(Path(options.weights))
    if status is not None and not is_native(Path(options.weights) / "weights"):
        return status  # the run trained an adapter or a planner, which is no checkpoint
    report = verify_checkpoint(options.weights, options.device, options.dtype)
    print(f"family       {report.family}")
    for part, count in {**report.parameters, "total": sum(report.parameters.values())}.items():
        print(f"{part:<20}{count:>16,}")
    print(f"sha256       {report.sha256}\nfingerprint  {report.fingerprint}")
    for planner in report.planners:
        print(f"planner      {planner}")
    file = fingerprint_file(options.weights)
    if options.save:
        file.write_text(report.fingerprint + "\n", encoding="utf-8")
    expected = options.expect or (file.read_text(encoding="utf-8").strip() if file.is_file() else None)
    if expected:
        check_fingerprint(report.fingerprint, expected, options.dtype)
    print("as expected" if expected else "complete; no fingerprint to compare with")
    return status or 0


def _check_run(folder: Path) -> int | None:
    """Print what has changed since the run in ``folder``; returns the exit status, or ``None`` if it is no run."""
    from acestep.runs.changes import is_run, verify_run

    if not is_run(folder):
        return None
    lines, is_unchanged = verify_run(folder)
    print("\n".join(lines))
    return 0 if is_unchanged else 1


def add_verify(commands: Any) -> None:
    command = add_command(commands, verify)
    command.add_argument("weights", help="checkpoint folder, run folder, or the name of a shipped one")
    command.add_argument("--expect", metavar="FINGERPRINT", help="expected fingerprint of the forward pass")
    command.add_argument("--save", action="store_true", help="write the fingerprint to FOLDER.fingerprint")
    command.add_argument("--device", default="cpu", help="device of the forward pass (default cpu)")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default float32)")
