"""``python -m acestep preprocess``: encodes songs into a latent store, or only checks them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from acestep.cli.command import add_command
from acestep.cli.terminal import count_progress
from acestep.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acestep.data.preprocess import Outcome, SkippedFile
    from acestep.data.store import Row

SOME_SKIPPED = 3
"""Exit status if some files could not be used."""


def preprocess(options: argparse.Namespace) -> int:
    """Encode a folder of songs into a latent store for training.

    Encode songs into a latent store, and write STORE/report.html. Run it again after adding songs, after correcting
    text, or after an interruption: only new audio is encoded. The text of NAME.flac is read from NAME.txt or
    NAME.caption.txt (caption), NAME.lrc or NAME.lyrics.txt, and NAME.json (caption, bpm, keyscale, timesignature,
    language, ...), or from a JSONL, JSON, CSV or Parquet manifest. Exit status: 0 success, 3 some files skipped (each
    is listed with its reason), 1 error.
    """
    from acestep.audio.loudness import Normalize
    from acestep.data.preprocess import Preprocess
    from acestep.data.report import dry_run, write_data_report
    from acestep.data.store import SETTINGS_FILE, check_settings, read_rows
    from acestep.pipeline.build import load_autoencoder
    from acestep.songs.metadata import validate_song

    load = partial(load_autoencoder, options.weights, options.device)
    run = Preprocess(workers=options.workers, normalize=Normalize(options.loudness), validate=validate_song)
    if options.check:
        if (options.store / SETTINGS_FILE).is_file():
            check_settings(options.store, run.settings(load()))
        with count_progress() as on_song:
            rows, skipped = dry_run(options.source, run, on_song)
        return _print_findings(rows, skipped, options.json)
    with count_progress() as on_song:
        outcome = run(options.source, options.store, load, on_song)
    status = _print_outcome(outcome, options.store, options.json)
    print(write_data_report(options.store / "report.html", read_rows(options.store), outcome.skipped))
    return status


def _print_findings(rows: Sequence[Row], skipped: Sequence[SkippedFile], file: Path | None) -> int:
    """Print one table of all findings, and write them to ``file`` as JSON; returns the exit status."""
    from acestep.data.report import findings

    found = findings(rows)
    table = Table("file", "", "finding", title=f"{len(rows)} songs can be used, {len(skipped)} cannot")
    for skip in skipped:
        table.add_row(Text(skip.file), "skip", Text(skip.reason))
    for finding in found:
        table.add_row(Text(finding.file), "check", Text(finding.what))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if file:
        write_json(
            file,
            {"usable": len(rows), "skipped": [asdict(s) for s in skipped], "findings": [asdict(f) for f in found]},
        )
    return SOME_SKIPPED if skipped else 0


def _print_outcome(outcome: Outcome, store: Path, file: Path | None) -> int:
    """Print the counts of a run, and write them to ``file`` as JSON; returns the exit status.

    Raises:
        ValueError: no song could be used.
    """
    if file:
        write_json(file, asdict(outcome))
    for skip in outcome.skipped:
        print(f"skipped {skip.file}: {skip.reason}")
    print(
        f"{store}: {outcome.stored} songs stored ({outcome.seconds_of_audio:.0f} s), {outcome.kept} already there, "
        f"{len(outcome.skipped)} skipped"
    )
    if outcome.skipped and not outcome.stored + outcome.kept:
        raise ValueError(f"store={store}: no song could be used; see the reasons above")
    return SOME_SKIPPED if outcome.skipped else 0


def add_preprocess(commands: Any) -> None:
    command = add_command(commands, preprocess)
    command.add_argument(
        "source",
        help="folder, manifest, tar shards, data set (hf://OWNER/NAME streams from the Hub) or your MODULE:FUNCTION",
    )
    command.add_argument("store", type=Path, help="folder of the store; created if missing")
    command.add_argument("--weights", default="micro", help="checkpoint whose autoencoder encodes (default micro)")
    command.add_argument("--workers", type=int, default=0, help="encoding processes; 0 uses this one (default 0)")
    command.add_argument("--device", default="cpu", help="device of the autoencoder, such as cuda (default cpu)")
    command.add_argument(
        "--loudness",
        choices=("none", "peak", "lufs"),
        default="none",
        help="level: unchanged (default), peaks at -1 dBFS, or songs at -14 LUFS",
    )
    command.add_argument("--check", action="store_true", help="encode nothing; print one table of all problems")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the counts to FILE")
