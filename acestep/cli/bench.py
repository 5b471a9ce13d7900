"""``python -m acestep bench``: benchmarks of this machine."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from acestep.cli.command import add_command

BENCHMARKS = {
    "sampler": ("sampler", "the sampler, compared with diffusers' DiT in the same loop"),
    "pipeline": ("pipeline", "the pipeline from text to audio, compared with diffusers'"),
    "autoencoder": ("autoencoder", "Oobleck, compared with diffusers'"),
    "train": ("train", "a training step, full and LoRA, compared with diffusers' DiT"),
    "length": ("length", "time and memory by the duration of a song"),
    "load": ("loading", "opening a checkpoint, compared with reading its bytes"),
    "eval": ("metrics", "distances between sets of songs, compared with torchmetrics and SciPy"),
    "planner": ("planner", "constrained decoding of plans, compared with free decoding"),
    "overhead": ("overhead", "a run of train.py, compared with a plain PyTorch loop"),
    "data": ("data", "songs per second of preprocessing and of data loading"),
    "gpu": ("gpu", "trainings of XL on a GPU: speed, and memory compared with the prediction"),
}
"""Module in ``benchmarks/``, which needs the packages that are compared with, and purpose."""

MINIMUM = {"seconds": 0.04, "workers": 0, "width": 0, "windows": 2}
"""Smallest values of the options where that is not 1; 0.04 s is one latent frame."""


def check_numbers(options: argparse.Namespace) -> None:
    """Raises ``ValueError`` for an integer, or a number of seconds, that is too small to measure anything."""
    for name, given in vars(options).items():
        for value in given if isinstance(given, list) else [given]:
            if not isinstance(value, int if name != "seconds" else float) or isinstance(value, bool):
                continue
            minimum = MINIMUM.get(name, 1)
            if not minimum <= value < float("inf"):
                rule = f"need a number of at least {minimum:g}" if name == "seconds" else f"need at least {minimum:g}"
                raise ValueError(f"{name}={value:g}: {rule}; or leave --{name.replace('_', '-')} out")


def run_benchmark(options: argparse.Namespace) -> int:
    """Run a module of ``benchmarks/`` with the arguments that follow its name."""
    root = Path(__file__).parents[2]
    if not (root / "benchmarks" / f"{options.module}.py").is_file():
        raise ValueError(f"bench {options.name}: is part of the repository, not of the package; run it there")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # diffusers warns about optional packages when imported
    if str(root) not in sys.path:
        sys.path.append(str(root))
    try:
        module = import_module(f"benchmarks.{options.module}")
    except ModuleNotFoundError as error:
        raise ValueError(f"bench {options.name}: needs {error.name}; pip install -e '.[dev]'") from error
    module.main(options.arguments)
    return 0


def bench_memory(options: argparse.Namespace) -> int:
    """Memory of each mode and each training.

    Generate songs in every mode of memory=..., each in its own process, and print the predicted and the measured peak,
    the time, and the difference of the latents from memory=full. With --model, predict for a published model without
    weights, in seconds; with --experiment, predict in a minute the memory of each device of a training for every mode
    of activation checkpointing (the experiment's has a star), and the smallest sufficient GPU.
    """
    check_numbers(options)
    from acestep.cli.bench_memory import memory_lines  # here, so that --help does not import torch

    given = {name: value for name, value in vars(options).items() if name != "command" and value is not None}
    for line in memory_lines(given):
        print(line, flush=True)
    return 0


def add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure this machine",
        description="Measure this machine; WHAT --help explains the output. All but memory need the repository and its "
        "development packages, which are compared with: pip install -e '.[dev]'.",
    )
    benchmarks = bench.add_subparsers(title="what", required=True, metavar="WHAT")
    for name, (module, purpose) in BENCHMARKS.items():
        # No option prefix here: all arguments, including --help, belong to the benchmark.
        command = benchmarks.add_parser(name, help=purpose, add_help=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")
        command.set_defaults(command=run_benchmark, module=module, name=name)
    command = add_command(benchmarks, bench_memory, "memory")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--weights", help="checkpoint to measure (default micro)")
    what.add_argument("--model", help="predict for a config of configs/model, such as xl_sft")
    what.add_argument("--experiment", help="predict for a config of configs/experiment, such as xl_lora")
    command.add_argument("--seconds", type=float, help="duration of each song (default 60)")
    command.add_argument("--songs", type=int, help="batch size (default 1)")
    command.add_argument("--dtype", help="default: bfloat16 on a GPU and for predictions, float32 on a CPU")
    command.add_argument(
        "--steps", type=int, help="sampler steps of a measurement; memory does not depend on them (default 4)"
    )
    command.add_argument("--device", help="of a measurement (default: the GPU if there is one)")
