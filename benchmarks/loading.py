"""Time of loading a checkpoint relative to reading its file, and memory of loading and converting it.

``python -m acestep bench load FOLDER --model xl_sft --json FILE``; weights are random, written to FOLDER once. Every
measurement runs in its own process; the results are the fastest round and the largest memory. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from acestep.__main__ import main as acestep
from acestep.cli.bench_memory import config_name
from acestep.config.run import build, compose_config
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.pipeline.build import build_network, named_dtype
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint
from benchmarks.measure import Run, bench_parser, machine

PACKAGES = ("torch", "safetensors")
WEIGHTS = "model.safetensors"
CONVERTED = "converted"
BUFFER = 16 * 2**20
STD = 0.02
READING = """x reading: time relative to reading the file's bytes. memory: peak beyond the imports; x file: relative to
the file's size; above the largest tensor: memory besides it."""
"""Explanation of the columns."""
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. ``memory`` is the process's peak beyond its imports, in bytes."""

    name: str
    seconds: float
    times_reading: float
    memory: int


class RandomTensors(Mapping[str, Tensor]):
    """Random values for every tensor of a network, as views of one buffer."""

    def __init__(self, shapes: Mapping[str, torch.Size], dtype: torch.dtype) -> None:
        self.shapes = shapes
        longest = max(shape.numel() for shape in shapes.values())
        self.buffer = (STD * torch.randn(longest, generator=torch.Generator().manual_seed(0))).to(dtype)

    def __getitem__(self, name: str) -> Tensor:
        return self.buffer[: self.shapes[name].numel()].view(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_random(config: AceStepConfig, folder: Path, dtype: torch.dtype) -> None:
    """A published-layout checkpoint of ``config``'s sizes, in one file."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AceStep(config).state_dict().items()}
    checkpoint = Checkpoint(
        name="random",
        network_config={name: value for name, value in config.to_dict().items() if value is not None},
        network=RandomTensors(shapes, dtype),
        silence=torch.zeros(1, config.timbre_fix_frame, config.audio_acoustic_hidden_dim),
        autoencoder_class="oobleck",
        autoencoder_config={},
        autoencoder=None,
        text_encoder=None,
    )
    save_checkpoint(checkpoint, folder, "upstream")


def read(folder: Path) -> None:
    """Read every byte of the file into one small buffer."""
    buffer = bytearray(BUFFER)
    with (folder / WEIGHTS).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def load(folder: Path, dtype: torch.dtype) -> AceStep:
    """Load the network."""
    return build_network(open_checkpoint(folder), "cpu", dtype)


def convert(folder: Path) -> None:
    """Convert to another layout with the command."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        status = acestep(["convert", str(folder), str(folder.with_name(f"{folder.name}.{CONVERTED}"))])
    assert status == 0


def measured(task: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    """Seconds and additional peak bytes of ``task`` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, torch.get_num_threads(), task, *arguments).result()


def _measure(threads: int, task: Callable[..., Any], *arguments: Any) -> tuple[float, int]:
    torch.set_num_threads(threads)
    before = _memory("VmRSS")
    started = perf_counter()
    kept = task(*arguments)
    seconds = perf_counter() - started
    memory = _memory("VmHWM") - before
    del kept
    return seconds, memory


def _memory(field: str) -> int:
    """Resident bytes of this process: current (``VmRSS``) or peak (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def drop_page_cache(path: Path) -> None:
    """Drop a file from the page cache, so that the next read is from disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(folder: Path, dtype: torch.dtype, rounds: int) -> list[Row]:
    """Measure reading and loading in alternation, from memory and from disk, then converting."""
    rows = []
    for place in ("memory", "disk"):
        results: dict[str, list[tuple[float, int]]] = {"read": [], "load": []}
        for _ in range(rounds):
            for name, task, arguments in (("read", read, (folder,)), ("load", load, (folder, dtype))):
                if place == "disk":
                    drop_page_cache(folder / WEIGHTS)
                results[name].append(measured(task, *arguments))
        seconds = {name: min(times)[0] for name, times in results.items()}
        for name, times in results.items():
            ratio = seconds[name] / seconds["read"]
            memory = max(bytes_ for _, bytes_ in times)
            rows.append(Row(name=f"{name} from {place}", seconds=seconds[name], times_reading=ratio, memory=memory))
    taken, memory = measured(convert, folder)
    rmtree(folder.with_name(f"{folder.name}.{CONVERTED}"))
    return [*rows, Row(name="convert to native", seconds=taken, times_reading=taken / seconds["read"], memory=memory)]


def report(rows: Sequence[Row], where: dict[str, Any], run: Run) -> None:
    """Print the table, and write rows and machine into the file of ``run``."""
    title = f"{where['model']}: {where['file'] / GB:.2f} GB, largest tensor {where['largest'] / GB:.3f} GB"
    table = Table("", title=f"{title}, {where['threads']} threads")
    for column in ("s", "x reading", "memory GB", "x file", "GB above largest tensor"):
        table.add_column(column, justify="right")
    for row in rows:
        above = (row.memory - where["largest"]) / GB
        shares = f"{row.memory / GB:.2f}", f"{row.memory / where['file']:.2f}", f"{above:.2f}"
        table.add_row(row.name, f"{row.seconds:.2f}", f"{row.times_reading:.2f}", *shares)
    Console(width=120).print(table)
    counts = "the fastest round, and the greatest memory of all; converting: once"
    run.write(where, counts, rows=[asdict(row) for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the weights if they are missing, measure, report."""
    parser = bench_parser("load", __doc__, READING)
    parser.add_argument("folder", type=Path, help="for the random weights, twice their size; kept for the next time")
    parser.add_argument("--model", default="xl_sft", help="one of configs/model (default xl_sft)")
    parser.add_argument("--stored", default="bfloat16", help="type of the file's numbers (default bfloat16)")
    parser.add_argument("--dtype", default="bfloat16", help="type to load them in (default bfloat16)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed rounds of each (default 3)")
    run = Run.parse(parser, arguments)
    options = run.options
    stored, dtype = named_dtype(options.stored), named_dtype(options.dtype)
    folder = options.folder / f"{config_name('model', options.model)}_{options.stored}"
    if not folder.is_dir():
        write_random(build(compose_config("train", [f"model={options.model}"]).model), folder, stored)
    tensors = open_checkpoint(folder).network
    where = machine(PACKAGES) | {
        "model": folder.name,
        "loaded": options.dtype,
        "file": (folder / WEIGHTS).stat().st_size,
        "largest": max(tensor.nbytes for tensor in tensors.values()),
    }
    report(compare(folder, dtype, options.rounds), where, run)


if __name__ == "__main__":
    main()
