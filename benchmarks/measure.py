"""Shared parts of the benchmarks: options, results file, rows, alternating timing, measured peaks."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter, process_time
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from acestep.cli.bench import check_numbers
from acestep.files import read_json, write_json
from acestep.memory import CPU
from benchmarks.work import Work

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. ``error`` is the largest absolute difference between both results.

    ``flops`` and ``bytes`` are those of our matrix products, convolutions and attentions, see ``work.Work``.
    ``products_s`` is the time of the unavoidable products alone, and ``times_products`` our time over it.
    """

    name: str
    ours_s: float
    peer: str
    peer_s: float
    ratio: float
    flops: int
    bytes: int
    share_of_peak: float
    error: float
    products_s: float | None = None
    times_products: float | None = None


CLOCKS: dict[str, Callable[[], float]] = {"wall": perf_counter, "cpu": process_time}
"""``cpu`` is the processor time of all threads, which other programs affect less."""

FASTEST = "the fastest round of each, all taking turns"
COLUMNS = """A line for each case and peer. ours s, peer s: seconds of the fastest round. peer / ours: above 1,
we are faster. ours / products: our time over that of the matrix products alone. share of peak: our products'
operations a second over the most that a matrix product reached here. error: the largest difference between both
results."""
"""Explanation of a table of :class:`Row`."""


def bench_parser(name: str, doc: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of ``bench NAME``; ``doc`` starts with its purpose, ``epilog`` explains its output."""
    description = doc.splitlines()[0].replace("``", "")
    return argparse.ArgumentParser(prog=f"python -m acestep bench {name}", description=description, epilog=epilog)


def add_cases(parser: argparse.ArgumentParser, sizes: Sequence[str], seconds: Sequence[float]) -> None:
    """Add the options of comparisons of networks: the cases, of which all combinations run, and the timing."""
    text = "parameters of the DiT: tiny 70 thousand, micro 1.4 million, 100m 111 million"
    text += (", and as published, for a GPU, 2b and xl" if "xl" in sizes else "") + " (default micro)"
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=["micro"], metavar="SIZE", help=text)
    defaults = " ".join(f"{one:g}" for one in seconds)
    parser.add_argument(
        "--seconds", nargs="+", type=float, default=list(seconds), metavar="S", help=f"of music (default {defaults})"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="songs at a time (default 1)")
    parser.add_argument("--compiled", action="store_true", help="compile both with torch.compile too: takes minutes")
    add_timing(parser)


def add_timing(parser: argparse.ArgumentParser, rounds: int = 3, clock: str = "wall") -> None:
    """Add the number of rounds and the clock."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, metavar="N", help=f"timed rounds of each (default {rounds})"
    )
    text = f"wall, or cpu: processor time of all threads, which other programs affect less (default {clock})"
    parser.add_argument("--clock", choices=CLOCKS, default=clock, help=text)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a benchmark with its results file.

    Attributes:
        command: command line that repeats it.
        options: the parsed options.
        earlier: runs and rows already in the file, with ``--append``.
    """

    command: str
    options: argparse.Namespace
    earlier: Mapping[str, Sequence[Any]]

    @classmethod
    def parse(cls, parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Run:
        """The run for ``arguments``, by default the command line.

        Raises:
            ValueError: a number is too small, the file cannot be written, or ``--append`` has no valid file.
        """
        parser.add_argument("--json", type=Path, metavar="FILE", help="write results, command and machine to this file")
        parser.add_argument("--append", action="store_true", help="keep the runs in FILE, and add this one")
        given = sys.argv[1:] if arguments is None else list(arguments)
        options = parser.parse_intermixed_args(given)
        check_numbers(options)
        if options.json:
            _check_file(options.json)
        output = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        output.add_argument("--json")
        output.add_argument("--append", action="store_true")
        _, relevant = output.parse_known_args(given)  # without the options of the output
        return cls(command=f"{parser.prog} {shlex.join(relevant)}".strip(), options=options, earlier=_earlier(options))

    def write(
        self, where: Mapping[str, Any], counts: str, rows: Iterable[Mapping[str, Any]] = (), **figures: Any
    ) -> None:
        """Write results with everything that they depend on to the file, if there is one.

        The file has all ``rows``, each with the index of its ``run``, and the list of ``runs``, each with ``command``,
        ``options``, ``counts`` (how they were measured), ``machine`` and the other ``figures``.
        """
        if self.options.json:
            options = {name: value for name, value in vars(self.options).items() if name not in ("json", "append")}
            options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
            run = {"command": self.command, "options": options, "counts": counts, "machine": where, **figures}
            earlier = self.earlier["runs"]
            new = [{**row, "run": len(earlier)} for row in rows]
            write_json(self.options.json, {"runs": [*earlier, run], "rows": [*self.earlier["rows"], *new]})


def _earlier(options: argparse.Namespace) -> dict[str, list[Any]]:
    none: dict[str, list[Any]] = {"runs": [], "rows": []}
    if not options.append:
        return none
    if not options.json:
        raise ValueError("append=true: needs a file to append to; add --json FILE")
    if not options.json.is_file():
        return none
    try:
        content = read_json(options.json)
    except ValueError:
        content = {}
    if content.keys() != none.keys() or not all(isinstance(part, list) for part in content.values()):
        raise ValueError(f"json={options.json}: holds no runs to append to; leave --append out, or name another file")
    return content


def _check_file(path: Path) -> None:
    """Raise ``ValueError`` if ``path`` cannot be written, before minutes of measuring."""
    if path.is_dir():
        raise ValueError(f"json={path}: is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"json={path}: cannot be written ({error.strerror}); name another file") from error


COMPILED = ", compiled"
"""Suffix of names with torch.compile."""


def pairings(peer: str, compiled: bool) -> list[tuple[str, str]]:
    """Pairs of our row's suffix and the peer's name; with ``compiled``, all combinations with and without compiler."""
    forms = ("", COMPILED) if compiled else ("",)
    return [(ours, peer + theirs) for ours in forms for theirs in forms]


def in_forms(
    peer: str, ours: Callable[[bool], Result], theirs: Callable[[bool], Result], compiled: bool
) -> dict[str, Result]:
    """The results of both, by the names of :func:`pairings`; the argument of both is whether to compile."""
    results = {"": ours(False), peer: theirs(False)}
    return results | ({COMPILED: ours(True), peer + COMPILED: theirs(True)} if compiled else {})


PRODUCTS = "products"
"""Name of the task with the unavoidable products."""


def compared(
    name: str,
    tasks: Mapping[str, Callable[[], Any]],
    pairs: Iterable[tuple[str, str]],
    error: Callable[[str, str], float],
    *,
    rounds: int,
    peak: float,
    clock: Callable[[], float],
) -> list[Row]:
    """Time ``tasks`` in alternation; a row for each pair of a form of ours and its peer.

    Args:
        name: of the case; the suffix of our form is appended.
        tasks: by name: ours by suffix (``""`` without compiler), the peers, optionally ``PRODUCTS``.
        pairs: suffix of our form, and the peer's name.
        error: largest difference between the results of both.
        rounds: timed rounds of each.
        peak: of the machine, in FLOP/s.
        clock: see ``CLOCKS``.
    """
    seconds = dict(zip(tasks, best_seconds(*tasks.values(), rounds=rounds, clock=clock), strict=True))
    products_s = seconds.get(PRODUCTS)
    with Work() as work:
        tasks[""]()
    return [
        Row(
            name=name + form,
            ours_s=seconds[form],
            peer=peer,
            peer_s=seconds[peer],
            ratio=seconds[peer] / seconds[form],
            flops=work.flops,
            bytes=work.bytes,
            share_of_peak=work.flops / seconds[form] / peak,
            error=error(form, peer),
            products_s=products_s,
            times_products=seconds[form] / products_s if products_s else None,
        )
        for form, peer in pairs
    ]


def largest_difference(results: Mapping[str, Tensor]) -> Callable[[str, str], float]:
    """The largest absolute difference between two results, by name."""
    return lambda ours, peer: float((results[ours] - results[peer]).abs().max())


def best_seconds(*tasks: Callable[[], Any], rounds: int, clock: Callable[[], float] = perf_counter) -> list[float]:
    """The shortest time in seconds of each task over ``rounds``; tasks alternate, for equal conditions."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, seconds in zip(tasks, times, strict=True):
            started = clock()
            task()
            seconds.append(clock() - started)
    return [min(seconds) for seconds in times]


def on_device(clock: Callable[[], float], device: torch.device) -> Callable[[], float]:
    """``clock``, read after ``device`` has finished its queued work."""
    if device.type != "cuda":
        return clock

    def read() -> float:
        torch.cuda.synchronize(device)
        return clock()

    return read


def matmul_peak(
    size: int | None = None,
    rounds: int = 50,
    clock: Callable[[], float] = perf_counter,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Peak FLOP/s of a square matrix product on this machine with torch's current threads, by the rows' clock.

    Takes at least half a second: at first, all threads of a new process may share one core. ``size`` is by default
    1024, on a GPU 8192.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    (seconds,) = best_seconds(lambda: a @ b, rounds=rounds, clock=clock)
    return 2 * size**3 / seconds


def copy_peak(size: int = 1 << 26, rounds: int = 5, device: torch.device = CPU) -> float:
    """Peak bytes per second, read and written, of copies larger than the caches."""
    source, target = (torch.zeros(size, device=device) for _ in range(2))
    (seconds,) = best_seconds(lambda: target.copy_(source), rounds=rounds, clock=on_device(perf_counter, device))
    return 2 * source.nbytes / seconds


def machine(packages: Sequence[str], peak: float | None = None, device: torch.device = CPU) -> dict[str, Any]:
    """Description of the machine and date; with ``peak`` (FLOP/s), the copy bandwidth is measured too."""
    return {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **({} if device.type != "cuda" else {"device": torch.cuda.get_device_name(device)}),
        **({} if peak is None else {"peak_flops": peak, "peak_bytes": copy_peak(device=device)}),
        "packages": {name: version(name) for name in packages},
    }


def report(rows: Sequence[Row], where: Mapping[str, Any], run: Run) -> None:
    """Print the table, and write the rows to the file of ``run``."""
    peaks = f"{where['peak_flops'] / 1e9:.0f} GFLOP/s, {where['peak_bytes'] / 1e9:.0f} GB/s"
    table = Table("name", "peer", title=f"{where['threads']} threads, measured peak {peaks}")
    for column in ("ours s", "peer s", "peer / ours", "ours / products", "share of peak", "error"):
        table.add_column(column, justify="right")
    for row in rows:
        products = "" if row.times_products is None else f"{row.times_products:.2f}"
        figures = f"{row.ours_s:.3f}", f"{row.peer_s:.3f}", f"{row.ratio:.2f}", products, f"{row.share_of_peak:.0%}"
        table.add_row(row.name, row.peer, *figures, f"{row.error:.1e}")
    Console(width=120).print(table)
    run.write(where, FASTEST, rows=[asdict(row) for row in rows])
