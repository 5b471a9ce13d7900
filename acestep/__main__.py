"""``python -m acestep COMMAND``: what is done around a model, once, rather than again and again in experiments.

Each command imports what it needs when it runs, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from acestep.cli.bench import bench_commands, check_numbers
from acestep.cli.export import release_commands
from acestep.cli.micro import micro_commands
from acestep.cli.publish import check_run, publish_command, sweep_report
from acestep.cli.report import report_command
from acestep.cli.terminal import SOME_SKIPPED, show_figures, show_findings, show_outcome, songs_progress

Commands = argparse._SubParsersAction


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. What a person can put right is told in one sentence."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return status


def preprocess(options: argparse.Namespace) -> int:
    """Encode songs into a latent store, or only look at them."""
    from acestep.data.journal import check_settings
    from acestep.data.measure import Level
    from acestep.data.preprocess import Preprocess
    from acestep.data.report import dry_run, write_report
    from acestep.data.settings import SETTINGS_FILE
    from acestep.data.store import read_rows
    from acestep.pipeline.build import load_autoencoder
    from acestep.songs.metadata import checked

    load = partial(load_autoencoder, options.weights, options.device)
    run = Preprocess(workers=options.workers, level=Level(options.loudness), checked=checked)
    with songs_progress() as bar:
        task = bar.add_task("songs", total=None)

        def on_song(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        if options.check:
            if (options.store / SETTINGS_FILE).is_file():
                check_settings(options.store, run.settings(load()))
            rows, skipped = dry_run(options.source, run.work, on_song)
            bar.stop()
            return show_findings(rows, skipped, options.json)
        outcome = run(options.source, options.store, load, on_song)
    status = show_outcome(outcome, options.store, options.json)
    print(write_report(options.store / "report.html", read_rows(options.store), outcome.skipped))
    return status


def bench_data(options: argparse.Namespace) -> int:
    """Measure how fast songs become latents, and latents batches."""
    check_numbers(options)
    from acestep.data.bench import bench_data as figures
    from acestep.pipeline.build import load_autoencoder

    load = partial(load_autoencoder, options.weights, options.device)
    return show_figures(figures(load, options.songs, options.workers), options.json)


def convert(options: argparse.Namespace) -> int:
    """Write a checkpoint in another layout."""
    from acestep.pipeline.build import named_dtype
    from acestep.weights.open import open_checkpoint
    from acestep.weights.save import save_checkpoint

    if options.target.exists():
        raise ValueError(f"target={options.target}: exists; name a new folder")
    dtype = named_dtype(options.dtype) if options.dtype else None
    save_checkpoint(open_checkpoint(options.source), options.target, options.to, dtype, options.base)
    print(options.target)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Say which checkpoint this is, and refuse one that is not whole."""
    from acestep.verify import check_fingerprint, fingerprint_file
    from acestep.verify import verify as verified
    from acestep.weights.native import is_native

    status = check_run(Path(options.weights))
    if status is not None and not is_native(Path(options.weights) / "weights"):
        return status  # an adapter, a planner, songs: what a run leaves beside whole checkpoints
    found = verified(options.weights, options.device, options.dtype)
    print(f"family       {found.family}")
    for part, count in {**found.parameters, "total": sum(found.parameters.values())}.items():
        print(f"{part:<20}{count:>16,}")
    print(f"sha256       {found.sha256}\nfingerprint  {found.fingerprint}")
    for planner in found.planners:
        print(f"planner      {planner}")
    beside = fingerprint_file(options.weights)
    if options.save:
        beside.write_text(found.fingerprint + "\n", encoding="utf-8")
    expected = options.expect or (beside.read_text(encoding="utf-8").strip() if beside.is_file() else None)
    if expected:
        check_fingerprint(found.fingerprint, expected, options.dtype)
    print("as expected" if expected else "whole; no fingerprint to compare with")
    return status or 0


def bench_memory(options: argparse.Namespace) -> int:
    """Measure or predict the memory that each mode takes."""
    check_numbers(options)
    from acestep.cli.bench_memory import memory_lines

    told = {name: value for name, value in vars(options).items() if name != "command" and value is not None}
    for line in memory_lines(told):
        print(line, flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m acestep",
        description="What is done around a model, once. Training, measuring and generating are train.py, evaluate.py "
        "and infer.py.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    micro_commands(commands, partial(print, flush=True))
    _data_commands(commands)
    _checkpoint_commands(commands)
    release_commands(commands, print)
    report_command(commands, sweep_report)
    publish_command(commands)
    bench_commands(commands, bench_memory, bench_data)
    return parser


def _data_commands(commands: Commands) -> None:
    """What comes before training."""
    command = commands.add_parser(
        "preprocess",
        help="encode a folder of songs into a latent store, which training reads",
        description="Encode songs into a latent store, and write STORE/report.html. Run it again after adding songs or "
        "correcting text, or where it was killed: only new audio is encoded. Text stands beside NAME.flac in NAME.txt "
        "or NAME.caption.txt (caption), NAME.lrc or NAME.lyrics.txt, and NAME.json (caption, bpm, keyscale, "
        "timesignature, language, ...), or in a JSONL, JSON, CSV or Parquet manifest.",
        epilog=f"Exit status: 0 all well, {SOME_SKIPPED} some files skipped (each is named with its reason), 1 error.",
    )
    command.add_argument(
        "source", help="folder, manifest, tar shards or data set (hf://OWNER/NAME streams from the Hub)"
    )
    command.add_argument("store", type=Path, help="folder of the store; made if it is not there")
    command.add_argument("--weights", default="micro", help="checkpoint whose autoencoder encodes (default micro)")
    command.add_argument("--workers", type=int, default=0, help="processes that encode; 0 uses this one (default 0)")
    command.add_argument("--device", default="cpu", help="where to encode, for instance cuda (default cpu)")
    command.add_argument(
        "--loudness",
        choices=("none", "peak", "lufs"),
        default="none",
        help="leave levels as they are (default), bring peaks to -1 dBFS, or songs to -14 LUFS",
    )
    command.add_argument("--check", action="store_true", help="encode nothing; print one table of every problem")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the closing counts there")
    command.set_defaults(command=preprocess)


def _checkpoint_commands(commands: Commands) -> None:
    """What is asked of a checkpoint."""
    command = commands.add_parser(
        "convert",
        help="write a checkpoint in another layout",
        description="Write a checkpoint in another layout, tensor by tensor. Known are published folders, diffusers "
        "pipelines and our own run folders; numbers stay as they are, bit for bit, unless --dtype is given.",
    )
    command.add_argument("source", help="checkpoint folder, run folder, or the name of a shipped one")
    command.add_argument("target", type=Path, help="folder to write; must not be there")
    command.add_argument("--to", default="native", help="native, upstream or diffusers (default native)")
    command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as they are)")
    command.add_argument("--base", type=Path, help="a checkpoint beside the target: write only what differs from it")
    command.set_defaults(command=convert)

    command = commands.add_parser(
        "verify",
        help="say which checkpoint this is and whether it is whole",
        description="Name a checkpoint's family, count its parameters, hash every tensor, check that all numbers are "
        "finite, and run one fixed forward pass, whose fingerprint is compared with --expect or with the one that is "
        "kept in FOLDER.fingerprint. Of a run folder, say as well whether its result, data, starting weights and the "
        "packages here are what they were, and whether it was started from a changed tree.",
        epilog="Exit status: 0 whole and as expected, 1 not.",
    )
    command.add_argument("weights", help="checkpoint folder, run folder, or the name of a shipped one")
    command.add_argument("--expect", metavar="FINGERPRINT", help="what the forward pass should give")
    command.add_argument("--save", action="store_true", help="keep the fingerprint in FOLDER.fingerprint")
    command.add_argument("--device", default="cpu", help="where to run the pass (default cpu)")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default float32)")
    command.set_defaults(command=verify)

    command = commands.add_parser(
        "describe",
        help="say what is heard in recordings: caption, metadata and lyrics",
        description="Recordings to codes, by a checkpoint's autoencoder and tokenizer, and codes to words, by a 5 Hz "
        "language model that was taught to describe them.",
    )
    command.add_argument("songs", type=Path, nargs="+", help="audio files")
    command.add_argument("--weights", default="micro", help="whose codes (default micro)")
    command.add_argument("--planner", default="micro_planner", help="the language model: a folder or a Hub id")
    command.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    command.add_argument("--temperature", type=float, default=0.3, help="of the draws (default 0.3, as upstream)")
    command.add_argument("--device", default="cpu", help="where to run (default cpu)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write it there too")
    command.set_defaults(command=hear)


def hear(options: argparse.Namespace) -> int:
    """Recordings to words."""
    from acestep.cli.describe import describe

    return describe(options)


if __name__ == "__main__":
    sys.exit(main())
