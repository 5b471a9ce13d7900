"""The arguments of ``python -m acestep bench``: what is measured on the machine at hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

Bench = Callable[[argparse.Namespace], int]

PEERS = {
    "sampler": ("sampler", "our sampler beside diffusers' DiT in the same loop"),
    "pipeline": ("pipeline", "our pipeline beside diffusers' whole one, words in and audio out"),
    "train": ("train", "our training step beside diffusers' DiT's, full and LoRA"),
    "length": ("length", "what a song's length costs in time and memory"),
    "load": ("loading", "opening a checkpoint beside reading its bytes"),
    "eval": ("metrics", "metrics beside torchmetrics and SciPy"),
}
"""Benchmarks that live beside the package, since they import what we are compared with: module and purpose."""


def run_peer(options: argparse.Namespace) -> int:
    """Run a benchmark of the repository's ``benchmarks/`` with the arguments that follow its name."""
    home = Path(__file__).parents[1]
    if not (home / "benchmarks" / f"{options.module}.py").is_file():
        raise ValueError(f"bench {options.name}: compares with other programs, which the repository does; run it there")
    if str(home) not in sys.path:
        sys.path.append(str(home))
    try:
        module = import_module(f"benchmarks.{options.module}")
    except ModuleNotFoundError as error:
        raise ValueError(f"bench {options.name}: needs {error.name}; pip install -e '.[dev]'") from error
    module.main(options.arguments)
    return 0


def bench_commands(commands: argparse._SubParsersAction, memory: Bench, data: Bench) -> None:
    """Add ``bench``, whose ``memory`` and ``data`` run the functions of those names."""
    benches = commands.add_parser("bench", help="measure this machine").add_subparsers(required=True, metavar="WHAT")
    for name, (module, purpose) in PEERS.items():
        # No prefix of its own: whatever follows, --help and --json FILE too, is the benchmark's.
        command = benches.add_parser(name, help=purpose, add_help=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")
        command.set_defaults(command=run_peer, module=module, name=name)
    command = benches.add_parser(
        "memory",
        help="what each way of fitting a model into memory takes",
        description="Make songs in every mode of memory=..., each in a process of its own, and print peaks beside what "
        "memory=auto predicts, times, and how far the latents are from those of memory=full; with --model, predict for "
        "a published model without weights; with --experiment, predict what each device of a training holds.",
    )
    command.add_argument("--weights", default="micro", help="checkpoint to measure (default micro)")
    command.add_argument("--model", help="predict only, for a config of configs/model, such as xl_sft")
    command.add_argument("--experiment", help="predict a training of configs/experiment, such as xl_lora")
    command.add_argument("--seconds", type=float, default=60.0, help="length of the song (default 60)")
    command.add_argument(
        "--steps", type=int, default=4, help="sampler steps, which memory does not depend on (default 4)"
    )
    command.add_argument("--songs", type=int, default=1, help="how many are made at a time (default 1)")
    command.add_argument("--device", default="auto", help="default: the GPU where there is one")
    command.add_argument("--dtype", default="auto", help="default: bfloat16 on a GPU, float32 on a CPU")
    command.set_defaults(command=memory)

    command = benches.add_parser(
        "data",
        help="how fast songs become latents, and latents batches",
        description="Decode and store FLAC files with an encoder that does nothing, then with the checkpoint's; read "
        "60-second crops from a store.",
    )
    command.add_argument("--weights", default="micro", help="checkpoint whose autoencoder encodes (default micro)")
    command.add_argument("--device", default="cpu", help="where to encode (default cpu)")
    command.add_argument("--songs", type=int, default=16, help="one-minute songs to encode (default 16)")
    command.add_argument("--workers", type=int, default=0, help="loader processes (default 0)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    command.set_defaults(command=data)
