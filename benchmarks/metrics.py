"""Distances between sets of embeddings, compared with torchmetrics and SciPy: same windows, process and machine.

``python -m acestep bench eval --json FILE``. Only the operations of matrix products are counted; most of the time goes
into roots and eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from acestep.evaluation.metrics.fad import Gaussian, frechet_distance
from acestep.evaluation.metrics.kad import kid
from benchmarks.measure import (
    CLOCKS,
    COLUMNS,
    Row,
    Run,
    add_timing,
    bench_parser,
    compared,
    machine,
    matmul_peak,
    report,
)

PACKAGES = ("torch", "torchmetrics", "scipy")


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """One metric, ours and a peer's: both from windows to a number."""

    name: str
    ours: Callable[[], float]
    peer: str
    theirs: Callable[[], float]


def pairings(windows: int, dimensions: int) -> Iterator[Pairing]:
    """The metrics that have a peer, on ``windows`` windows a side; in float64, as all of them compute."""
    generator = torch.Generator().manual_seed(0)
    reference, generated = (
        torch.randn(windows, dimensions, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    generated = 1.2 * generated + 0.1
    size = f"{windows} x {dimensions}"

    def fad() -> float:
        return frechet_distance(Gaussian.fit(reference), Gaussian.fit(generated))

    fid = FrechetInceptionDistance(feature=_identity(dimensions), normalize=True)
    yield Pairing(
        name=f"FAD {size}", ours=fad, peer="torchmetrics", theirs=lambda: _compared(fid, reference, generated)
    )
    yield Pairing(name=f"FAD {size}", ours=fad, peer="SciPy", theirs=lambda: scipys_distance(reference, generated))
    kernel = KernelInceptionDistance(feature=_identity(dimensions), subsets=1, subset_size=windows, normalize=True)
    yield Pairing(
        name=f"KID {size}",
        ours=lambda: kid(reference, generated),
        peer="torchmetrics",
        theirs=lambda: _compared(kernel, reference, generated),
    )


def scipys_distance(reference: Tensor, generated: Tensor) -> float:
    """The Fréchet distance by the matrix square root of the covariances' product, as in most tools."""
    a, b = reference.numpy(), generated.numpy()
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(one @ other)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + other - 2 * root.real))


def _identity(dimensions: int) -> nn.Module:
    identity = nn.Identity()
    identity.num_features = dimensions
    return identity


def _compared(
    metric: FrechetInceptionDistance | KernelInceptionDistance, reference: Tensor, generated: Tensor
) -> float:
    metric.reset()
    metric.set_dtype(torch.float64)
    metric.update(reference, real=True)
    metric.update(generated, real=False)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def compare(pairing: Pairing, rounds: int, peak: float, clock: Callable[[], float]) -> list[Row]:
    """Both on the same windows."""
    error = abs(pairing.ours() - pairing.theirs())
    tasks = {"": pairing.ours, pairing.peer: pairing.theirs}
    pairs = [("", pairing.peer)]
    return compared(pairing.name, tasks, pairs, lambda *_: error, rounds=rounds, peak=peak, clock=clock)


def main(arguments: Sequence[str] | None = None) -> None:
    """All metrics at the requested dimensions."""
    parser = bench_parser("eval", __doc__, COLUMNS)
    parser.add_argument("--windows", type=int, default=2000, help="embeddings in each set (default 2000)")
    parser.add_argument("--dimensions", nargs="+", type=int, default=[128, 512], help="of each (default 128 512)")
    add_timing(parser)
    run = Run.parse(parser, arguments)
    options = run.options
    peak = matmul_peak(clock=CLOCKS[options.clock])
    rows = [
        row
        for dimensions in options.dimensions
        for pairing in pairings(options.windows, dimensions)
        for row in compare(pairing, options.rounds, peak, CLOCKS[options.clock])
    ]
    report(rows, machine(PACKAGES, peak), run)


if __name__ == "__main__":
    main()
