"""The commands of the micro world: its songs, its frozen parts and the demonstration."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from acestep.cli.terminal import songs_progress

Commands = argparse._SubParsersAction
Tell = Callable[[object], None]


def micro_commands(commands: Commands, tell: Tell) -> None:
    """Add the commands of the micro world to ``commands``; what they find goes to ``tell``."""
    command = commands.add_parser(
        "synth",
        help="write songs of the micro world, whose truth is known",
        description="Write songs of the micro world: FLAC files with captions, lyrics and metadata beside them.",
    )
    command.add_argument("folder", type=Path, help="where to; made if it is not there")
    command.add_argument("--songs", type=int, required=True, help="how many")
    command.add_argument("--seed", type=int, default=0, help="the same seed writes the same songs (default 0)")
    command.add_argument("--workers", type=int, default=1, help="processes that render (default 1)")
    command.add_argument(
        "--annotation",
        choices=("curated", "web", "musician"),
        default="curated",
        help="curated: every song is described fully and truly (default); web: facts are missing or wrong; musician: "
        "captions tell tempo and key too, as in 'allegro, 8B'",
    )
    command.add_argument("--instruments", metavar="A,B", help="only these, for instance accordion; default: the usual")
    command.set_defaults(command=partial(synth, tell=tell))

    command = commands.add_parser(
        "foundation",
        help="make the micro checkpoints' autoencoder, text encoder and oracles from nothing",
        description="Fit the frozen parts of the micro checkpoints on micro-world songs, beside a new network: "
        "train.py experiment=micro_base weights=FOLDER trains it.",
    )
    command.add_argument("folder", type=Path, help="where to")
    command.add_argument("--songs", type=int, default=2000, help="how many the oracles are fitted on (default 2000)")
    command.add_argument("--seed", type=int, default=0, help="of songs and random weights (default 0)")
    command.add_argument("--workers", type=int, default=1, help="processes that render and listen (default 1)")
    command.set_defaults(command=partial(foundation, tell=tell))

    command = commands.add_parser(
        "demo",
        help="synthesise, fine-tune, train a LoRA, sweep guidance and write a report, in minutes",
        description="Fine-tune the shipped micro base, train a LoRA on the result, sweep the guidance scale and write "
        "FOLDER/report.html and FOLDER/summary.json. The same command goes on where it stopped.",
    )
    command.add_argument("folder", type=Path, nargs="?", default=Path("runs/demo"), help="default runs/demo")
    command.set_defaults(command=partial(demo, tell=tell))


def synth(options: argparse.Namespace, tell: Tell) -> int:
    """Write songs of the micro world."""
    from acestep.synth import write_world
    from acestep.synth.world import ANNOTATIONS, INSTRUMENTS

    instruments = options.instruments.split(",") if options.instruments else INSTRUMENTS
    with songs_progress() as bar:
        task = bar.add_task("songs", total=options.songs)
        write_world(
            options.folder,
            songs=options.songs,
            seed=options.seed,
            annotation=ANNOTATIONS[options.annotation],
            instruments=instruments,
            workers=options.workers,
            on_song=lambda done: bar.update(task, completed=done),
        )
    tell(f"{options.songs} songs in {options.folder}")
    return 0


def foundation(options: argparse.Namespace, tell: Tell) -> int:
    """Make the frozen parts of the micro checkpoints, and the oracles."""
    from acestep.config.compose import composed
    from acestep.config.run import build
    from acestep.synth.foundation import build_foundation

    if options.songs < 1:
        raise ValueError(f"songs={options.songs}: need at least 1")
    if options.folder.exists() and not options.folder.is_dir():
        raise ValueError(f"folder={options.folder}: is a file; name a folder")
    with songs_progress() as bar:
        task = bar.add_task("songs", total=options.songs)
        build_foundation(
            options.folder,
            build(composed("train", ["model=micro"]).model),
            songs=options.songs,
            seed=options.seed,
            workers=options.workers,
            on_song=lambda done: bar.update(task, completed=done),
        )
    tell(options.folder)
    return 0


def demo(options: argparse.Namespace, tell: Tell) -> int:
    """Run the demonstration."""
    from acestep.cli.demo import Demo, lines

    summary = Demo()(options.folder, tell)
    tell("\n".join(lines(summary)))
    return 0
