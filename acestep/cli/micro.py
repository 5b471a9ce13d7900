"""``python -m acestep synth``, ``foundation`` and ``demo``: songs, frozen networks and demo of the micro world."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from acestep.cli.command import add_command
from acestep.cli.terminal import count_progress


def synth(options: argparse.Namespace) -> int:
    """Write songs of the micro world, with known ground truth.

    Write songs of the micro world: FLAC files with captions, lyrics and metadata beside them.
    """
    from acestep.synth import write_world
    from acestep.synth.world import ANNOTATIONS, INSTRUMENTS

    with count_progress(options.songs) as on_song:
        write_world(
            options.folder,
            songs=options.songs,
            seed=options.seed,
            annotation=ANNOTATIONS[options.annotation],
            instruments=options.instruments.split(",") if options.instruments else INSTRUMENTS,
            workers=options.workers,
            on_song=on_song,
        )
    print(f"{options.songs} songs in {options.folder}")
    return 0


def foundation(options: argparse.Namespace) -> int:
    """Train the micro checkpoints' autoencoder, text encoder and oracles from scratch.

    Fit the frozen parts of the micro checkpoints on songs of the micro world, and add a new network: train.py
    experiment=micro_base weights=FOLDER trains it.
    """
    from acestep.config.run import build, compose_config
    from acestep.synth.foundation import build_foundation

    if options.songs < 1:
        raise ValueError(f"songs={options.songs}: need at least 1")
    if options.folder.exists() and not options.folder.is_dir():
        raise ValueError(f"folder={options.folder}: is a file; name a folder")
    with count_progress(options.songs) as on_song:
        build_foundation(
            options.folder,
            build(compose_config("train", ["model=micro"]).model),
            songs=options.songs,
            seed=options.seed,
            workers=options.workers,
            on_song=on_song,
        )
    print(options.folder)
    return 0


def demo(options: argparse.Namespace) -> int:
    """Synthesise songs, fine-tune, train a LoRA, sweep guidance and write a report, in minutes.

    Fine-tune the shipped micro base, train a LoRA on the result, sweep the guidance scale and write FOLDER/report.html
    and FOLDER/summary.json. The same command continues after an interruption.
    """
    from acestep.cli.demo import Demo, summary_text

    print(summary_text(Demo()(options.folder)))
    return 0


def add_micro(commands: Any) -> None:
    command = add_command(commands, synth)
    command.add_argument("folder", type=Path, help="folder to write to; created if missing")
    command.add_argument("--songs", type=int, required=True, help="number of songs")
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same songs (default 0)")
    command.add_argument("--workers", type=int, default=1, help="rendering processes (default 1)")
    command.add_argument(
        "--annotation",
        choices=("curated", "web", "musician"),
        default="curated",
        help="curated: complete and correct descriptions (default); web: facts are missing or wrong; musician: "
        "captions state tempo and key too, as in 'allegro, 8B'",
    )
    command.add_argument("--instruments", metavar="A,B", help="only these, for instance accordion (default: the usual)")

    command = add_command(commands, foundation)
    command.add_argument("folder", type=Path, help="folder to write to")
    command.add_argument("--songs", type=int, default=2000, help="songs for fitting the oracles (default 2000)")
    command.add_argument("--seed", type=int, default=0, help="of songs and random weights (default 0)")
    command.add_argument("--workers", type=int, default=1, help="processes that render and analyse (default 1)")

    command = add_command(commands, demo)
    command.add_argument("folder", type=Path, nargs="?", default=Path("runs/demo"), help="default runs/demo")
