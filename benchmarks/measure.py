"""What every benchmark shares: a row of results, timing by turns, the machine's measured peak, the table."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from acestep.files import write_json

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison. ``error`` is the largest difference between both results, ``flops`` our matrix products'.

    ``products_s`` is what those products alone take that cannot be saved, and ``times_products`` ours over it.
    """

    name: str
    ours_s: float
    peer: str
    peer_s: float
    ratio: float
    flops: int
    share_of_peak: float
    error: float
    products_s: float | None = None
    times_products: float | None = None


def compared(
    *,
    name: str,
    ours_s: float,
    peer: str,
    peer_s: float,
    flops: int,
    peak: float,
    error: float,
    products_s: float | None = None,
) -> Row:
    """The row of these measurements; ``peak`` is the machine's in FLOP/s."""
    return Row(
        name=name,
        ours_s=ours_s,
        peer=peer,
        peer_s=peer_s,
        ratio=peer_s / ours_s,
        flops=flops,
        share_of_peak=flops / ours_s / peak,
        error=error,
        products_s=products_s,
        times_products=ours_s / products_s if products_s else None,
    )


CLOCKS: dict[str, Callable[[], float]] = {"wall": perf_counter, "cpu": process_time}
"""``cpu`` counts the work of all threads, and is what other programs disturb less."""


def add_timing(parser: argparse.ArgumentParser) -> None:
    """Add what every timed comparison is told: how often, by which clock, and where its figures go."""
    parser.add_argument("--rounds", type=int, default=3, help="of which the fastest counts (default 3)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of all threads (default wall)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures and machine there")


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


def best_seconds(*tasks: Callable[[], Any], rounds: int, clock: Callable[[], float] = perf_counter) -> list[float]:
    """The shortest time of each task over ``rounds``, the tasks taking turns so that all see the same machine."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, seconds in zip(tasks, times, strict=True):
            started = clock()
            task()
            seconds.append(clock() - started)
    return [min(seconds) for seconds in times]


def matmul_peak(size: int = 1024, rounds: int = 10, clock: Callable[[], float] = perf_counter) -> float:
    """FLOP/s of this machine's float32 matrix product, on the threads that torch uses now, by the rows' clock."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    a @ b
    (seconds,) = best_seconds(lambda: a @ b, rounds=rounds, clock=clock)
    return 2 * size**3 / seconds


def count_flops(task: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in ``task``."""
    # The fused CPU attention is not in torch's table; as matrix products it is.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task()
    return counter.get_total_flops()


def machine(peak: float, packages: Sequence[str]) -> dict[str, Any]:
    """Where the figures come from, and when."""
    return {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "peak_flops": peak,
        "packages": {name: version(name) for name in packages},
    }


def report(rows: Sequence[Row], where: dict[str, Any], path: Path | None) -> None:
    """Print the table, and write rows and machine to ``path`` as JSON if one is given."""
    table = Table(
        "name", "peer", title=f"{where['threads']} threads, measured peak {where['peak_flops'] / 1e9:.0f} GFLOP/s"
    )
    for column in ("ours s", "peer s", "peer / ours", "ours / products", "share of peak", "error"):
        table.add_column(column, justify="right")
    for row in rows:
        products = "" if row.times_products is None else f"{row.times_products:.2f}"
        figures = f"{row.ours_s:.3f}", f"{row.peer_s:.3f}", f"{row.ratio:.2f}", products, f"{row.share_of_peak:.0%}"
        table.add_row(row.name, row.peer, *figures, f"{row.error:.1e}")
    Console(width=120).print(table)
    if path:
        record = {"machine": where, "rows": [asdict(row) for row in rows]}
        write_json(path, record)
