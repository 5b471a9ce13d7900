"""What every benchmark shares: its options and its record, a row of results, timing by turns, the measured peak."""

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

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. ``error`` is the largest difference between both results.

    ``flops`` and ``bytes`` are those of our matrix products, convolutions and attentions, see ``work.Work``.
    ``products_s`` is what those products alone take that cannot be saved, and ``times_products`` ours over it.
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
"""``cpu`` counts the work of all threads, and is what other programs disturb less."""


FASTEST = "the fastest round of each, all taking turns"
COLUMNS = """A line for each case and peer. ours s, peer s: seconds of the fastest round. peer / ours: above 1,
we are faster. ours / products: our time over that of the matrix products alone. share of peak: our products'
operations a second over the most that a matrix product reached here. error: the largest difference between both
results."""
"""How a table of :class:`Row` is read."""


def bench_parser(name: str, doc: str, epilog: str) -> argparse.ArgumentParser:
    """Of ``bench NAME``: ``doc`` begins with what it does, ``epilog`` says how to read what it prints."""
    told = doc.splitlines()[0].replace("``", "")
    return argparse.ArgumentParser(prog=f"python -m acestep bench {name}", description=told, epilog=epilog)


def add_cases(parser: argparse.ArgumentParser, sizes: Sequence[str], seconds: Sequence[float]) -> None:
    """Add what the comparisons of networks are told: which cases, all combinations of them, and how they are timed."""
    told = "parameters of the DiT: tiny 70 thousand, micro 1.4 million, 100m 111 million"
    told += (", and as published, for a GPU, 2b and xl" if "xl" in sizes else "") + " (default micro)"
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=["micro"], metavar="SIZE", help=told)
    usual = " ".join(f"{one:g}" for one in seconds)
    parser.add_argument(
        "--seconds", nargs="+", type=float, default=list(seconds), metavar="S", help=f"of music (default {usual})"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="songs at a time (default 1)")
    parser.add_argument("--compiled", action="store_true", help="both through torch's compiler too: minutes of waiting")
    add_timing(parser)


def add_timing(parser: argparse.ArgumentParser, rounds: int = 3, clock: str = "wall") -> None:
    """Add how often something is timed, and by which clock."""
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"turns of each (default {rounds})")
    told = f"wall, or cpu: seconds of all threads, which other programs disturb less (default {clock})"
    parser.add_argument("--clock", choices=CLOCKS, default=clock, help=told)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A benchmark as it was started, and the file for what it finds, which every benchmark can be told of.

    Attributes:
        command: that which repeats it.
        options: all of them, checked.
        earlier: runs and rows that the file holds, and keeps.
    """

    command: str
    options: argparse.Namespace
    earlier: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> Run:
        """The run that ``arguments``, or else the command line, ask for.

        Raises:
            ValueError: if a number is too small, the file cannot be written, or there is nothing to append to.
        """
        parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, command and machine there")
        parser.add_argument("--append", action="store_true", help="keep the runs that FILE holds, and add this one")
        given = sys.argv[1:] if arguments is None else list(arguments)
        options = parser.parse_intermixed_args(given)
        check_numbers(options)
        if options.json:
            _check_file(options.json)
        where = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        where.add_argument("--json")
        where.add_argument("--append", action="store_true")
        _, asked = where.parse_known_args(given)  # what decides the figures, not where they go
        return cls(command=f"{parser.prog} {shlex.join(asked)}".strip(), options=options, earlier=_earlier(options))

    def write(
        self, where: Mapping[str, Any], counts: str, rows: Iterable[Mapping[str, Any]] = (), **figures: Any
    ) -> None:
        """Put figures with all that they depend on into the file, if one was named; ``counts`` says how they are made.

        In a file are all ``rows``, each with the index of its ``run``, and a list of ``runs``, each with ``command``,
        ``options``, ``counts``, ``machine`` and what other figures it has.
        """
        if self.options.json:
            told = {name: value for name, value in vars(self.options).items() if name not in ("json", "append")}
            told = {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}
            run = {"command": self.command, "options": told, "counts": counts, "machine": where, **figures}
            earlier = self.earlier["runs"]
            made = [{**row, "run": len(earlier)} for row in rows]
            write_json(self.options.json, {"runs": [*earlier, run], "rows": [*self.earlier["rows"], *made]})


def _earlier(options: argparse.Namespace) -> dict[str, list[Any]]:
    none: dict[str, list[Any]] = {"runs": [], "rows": []}
    if not options.append:
        return none
    if not options.json:
        raise ValueError("append=true: needs a file to append to; add --json FILE")
    if not options.json.is_file():
        return none
    try:
        found = read_json(options.json)
    except ValueError:
        found = {}
    if found.keys() != none.keys() or not all(isinstance(part, list) for part in found.values()):
        raise ValueError(f"json={options.json}: holds no runs to append to; leave --append out, or name another file")
    return found


def _check_file(path: Path) -> None:
    """Whether it can be written, asked before minutes of measuring."""
    if path.is_dir():
        raise ValueError(f"json={path}: is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"json={path}: cannot be written ({error.strerror}); name another file") from error


COMPILED = ", compiled"
"""Ends the name of what torch's compiler made."""


def pairings(peer: str, compiled: bool) -> list[tuple[str, str]]:
    """The end of our row's name, and its peer: as written, and ``compiled`` each form of ours beside each of theirs."""
    forms = ("", COMPILED) if compiled else ("",)
    return [(ours, peer + theirs) for ours in forms for theirs in forms]


def in_forms(
    peer: str, ours: Callable[[bool], Made], theirs: Callable[[bool], Made], compiled: bool
) -> dict[str, Made]:
    """What ours and theirs make, by the names of :func:`pairings`; both are told whether to compile."""
    made = {"": ours(False), peer: theirs(False)}
    return made | ({COMPILED: ours(True), peer + COMPILED: theirs(True)} if compiled else {})


PRODUCTS = "products"
"""Names the task that holds what cannot be saved."""


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
    """Time ``tasks`` by turns; a row for each pair of a form of ours and its peer.

    Args:
        name: what is done; the form of ours is put behind it.
        tasks: by name, ours under its form, ``""`` as written; perhaps ``PRODUCTS``.
        pairs: the form of ours, and the peer's name.
        error: the largest difference between the results of both.
        rounds: turns of each.
        peak: the machine's, in FLOP/s.
        clock: what they are timed by.
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


def largest_difference(made: Mapping[str, Tensor]) -> Callable[[str, str], float]:
    """Between two of what was ``made``, by name."""
    return lambda ours, peer: float((made[ours] - made[peer]).abs().max())


def best_seconds(*tasks: Callable[[], Any], rounds: int, clock: Callable[[], float] = perf_counter) -> list[float]:
    """The shortest time of each task over ``rounds``, the tasks taking turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, seconds in zip(tasks, times, strict=True):
            started = clock()
            task()
            seconds.append(clock() - started)
    return [min(seconds) for seconds in times]


def on_device(clock: Callable[[], float], device: torch.device) -> Callable[[], float]:
    """``clock``, read when ``device`` has done what it was told."""
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
    """FLOP/s of a matrix product of this machine, on the threads that torch uses now, by the rows' clock.

    Of half a second and more: before, both threads of a young process may be on one core. ``size`` is 1024, and on a
    GPU 8192.
    """
    size = size or (1024 if device.type == "cpu" else 8192)
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    (seconds,) = best_seconds(lambda: a @ b, rounds=rounds, clock=clock)
    return 2 * size**3 / seconds


def copy_peak(size: int = 1 << 26, rounds: int = 5, device: torch.device = CPU) -> float:
    """Bytes a second that this machine reads and writes as it copies numbers which no cache holds."""
    source, target = (torch.zeros(size, device=device) for _ in range(2))
    (seconds,) = best_seconds(lambda: target.copy_(source), rounds=rounds, clock=on_device(perf_counter, device))
    return 2 * source.nbytes / seconds


def machine(packages: Sequence[str], peak: float | None = None, device: torch.device = CPU) -> dict[str, Any]:
    """Where the figures come from, and when; ``peak`` in FLOP/s, where they are measured by it, and copies beside."""
    return {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **({} if device.type != "cuda" else {"device": torch.cuda.get_device_name(device)}),
        **({} if peak is None else {"peak_flops": peak, "peak_bytes": copy_peak(device=device)}),
        "packages": {name: version(name) for name in packages},
    }


def report(rows: Sequence[Row], where: Mapping[str, Any], run: Run) -> None:
    """Print the table, and write the rows into the file of ``run``."""
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
