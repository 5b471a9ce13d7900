"""The arguments of ``python -m acestep bench``: what is measured on the machine at hand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

Bench = Callable[[argparse.Namespace], int]

PEERS = {
    "sampler": ("sampler", "our sampler beside diffusers' DiT in the same loop"),
    "pipeline": ("pipeline", "our pipeline beside diffusers' whole one, words in and audio out"),
    "autoencoder": ("autoencoder", "our Oobleck beside diffusers', to latents and back"),
    "train": ("train", "our training step beside diffusers' DiT's, full and LoRA"),
    "length": ("length", "what a song's length costs in time and memory"),
    "load": ("loading", "opening a checkpoint beside reading its bytes"),
    "eval": ("metrics", "our distances between sets of songs beside torchmetrics' and SciPy's"),
    "planner": ("planner", "plans that the grammar keeps valid beside free decoding"),
    "overhead": ("overhead", "a run of train.py beside a bare PyTorch loop"),
    "gpu": ("gpu", "the trainings of XL on a GPU: memory beside what is predicted, speed"),
}
"""Benchmarks that live beside the package, since they import what we are compared with: module and purpose."""

LEAST = {"seconds": 0.04, "workers": 0, "width": 0, "windows": 2}
"""What the numbers of an option must be at least where that is not 1; a song is one latent frame at least."""


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse a whole number or seconds in ``options``, or in a list there, that are too small to measure anything."""
    for name, given in vars(options).items():
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, int if name != "seconds" else float) or isinstance(value, bool):
                continue
            least = LEAST.get(name, 1)
            if not least <= value < float("inf"):
                rule = f"need a number of at least {least:g}" if name == "seconds" else f"need at least {least:g}"
                raise ValueError(f"{name}={value:g}: {rule}; or leave --{name.replace('_', '-')} out")


def run_peer(options: argparse.Namespace) -> int:
    """Run a benchmark of the repository's ``benchmarks/`` with the arguments that follow its name."""
    home = Path(__file__).parents[2]
    if not (home / "benchmarks" / f"{options.module}.py").is_file():
        raise ValueError(f"bench {options.name}: compares with other programs, which the repository does; run it there")
    # Diffusers and transformers tell while they are imported of what they could read and nobody asked for.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
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
    bench = commands.add_parser(
        "bench",
        help="measure this machine",
        description="Measure this machine; WHAT --help says how to read what is printed. All but memory and data need "
        "the repository and its development packages, to compare with other programs: pip install -e '.[dev]'.",
    )
    benches = bench.add_subparsers(title="what", required=True, metavar="WHAT")
    for name, (module, purpose) in PEERS.items():
        # No prefix of its own: whatever follows, --help and --json FILE too, is the benchmark's.
        command = benches.add_parser(name, help=purpose, add_help=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")
        command.set_defaults(command=run_peer, module=module, name=name)
    command = benches.add_parser(
        "memory",
        help="what each way of fitting a model into memory takes",
        description="Make songs in every mode of memory=..., each in a process of its own, and print peaks beside what "
        "memory=auto predicts, times, and how far the latents are from those of memory=full. With --model, predict for "
        "a published model without weights, in some seconds; with --experiment, predict in a minute what each device "
        "of a training holds for every way of recomputing (its own has a star), and the smallest card with room.",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--weights", help="checkpoint to measure (default micro)")
    what.add_argument("--model", help="predict for a config of configs/model, such as xl_sft")
    what.add_argument("--experiment", help="predict a training of configs/experiment, such as xl_lora")
    command.add_argument("--seconds", type=float, help="length of each song (default 60)")
    command.add_argument("--songs", type=int, help="how many are made at a time (default 1)")
    command.add_argument("--dtype", help="default: bfloat16 on a GPU and of a prediction, float32 on a CPU")
    command.add_argument("--steps", type=int, help="to measure: sampler steps; memory is the same for any (default 4)")
    command.add_argument("--device", help="to measure: where (default: the GPU where there is one)")
    command.set_defaults(command=memory)

    command = benches.add_parser(
        "data",
        help="how fast songs become latents, and latents batches",
        description="Decode and store FLAC files with an encoder that does nothing, then with the checkpoint's; read "
        "60-second crops from a store. Some minutes on a CPU.",
    )
    command.add_argument("--weights", default="micro", help="checkpoint whose autoencoder encodes (default micro)")
    command.add_argument("--device", default="cpu", help="where to encode (default cpu)")
    command.add_argument("--songs", type=int, default=16, help="one-minute songs to encode (default 16)")
    command.add_argument("--workers", type=int, default=0, help="processes that read crops; 0 uses this one (default)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    command.set_defaults(command=data)
