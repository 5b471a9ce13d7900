"""Orthogonal wavelet filters, computed rather than tabulated, and the projection onto their low band.

Source: Daubechies, *Ten Lectures on Wavelets*, sections 6.1 (extremal phase, ``dbN``) and 8.1.1 (least asymmetric,
``symN``). Names, order and orientation are those of PyWavelets' ``rec_lo``.
"""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

MAX_ORDER = 20

# Which roots of the least asymmetric filters are outside the unit circle, from order 2 on. "Least" depends on the
# measure of asymmetry; these are the choices of the published tables.
_OUTSIDE = (
    *("0", "0", "01", "10", "101", "100", "0101", "0110", "10101", "01100", "101010", "001110", "0011010"),
    *("0011100", "10011010", "01110001", "101100101", "001011100", "1010011010"),
)


@cache
def scaling_filter(name: str) -> tuple[float, ...]:
    """The low-pass synthesis filter of ``haar``, ``db1`` to ``db20`` or ``sym2`` to ``sym20``, of unit norm."""
    match = re.fullmatch(r"(db|sym)([1-9]\d?)", "db1" if name == "haar" else name)
    family, order = (match[1], int(match[2])) if match else ("", 0)
    if not (2 if family == "sym" else 1) <= order <= MAX_ORDER:
        raise ValueError(f"correction.wavelet={name}: unknown; use haar, db1 to db20 or sym2 to sym20")
    roots = _inner_roots(order)
    outside = _OUTSIDE[order - 2] if family == "sym" else "0" * len(roots)
    zeros = [1 / root if flag == "1" else root for root, flag in zip(roots, outside, strict=True)]
    pairs = [z for zero in zeros for z in ([zero, zero.conjugate()] if zero.imag else [zero.real])]
    taps = np.poly([-1.0] * order + pairs).real
    return tuple((taps * math.sqrt(2) / taps.sum()).tolist())


def low_band(x: Float[Tensor, "b t c"], wavelet: str) -> Float[Tensor, "b t c"]:
    """Low band of ``x``, zero-padded, after one level of ``wavelet``: analysis, downsampling by 2, and synthesis.

    The projection onto the even shifts of the scaling function.
    """
    frames, channels = x.shape[1:]
    taps = torch.tensor(scaling_filter(wavelet), dtype=x.dtype, device=x.device)
    kernel = taps.expand(channels, 1, -1)
    lead = len(taps) - 2  # the first window that contains frame 0 and starts at an even offset
    padded = functional.pad(x.transpose(1, 2), (lead, lead + frames % 2))
    coefficients = functional.conv1d(padded, kernel, stride=2, groups=channels)
    low = functional.conv_transpose1d(coefficients, kernel, stride=2, groups=channels)
    return low[..., lead : lead + frames].transpose(1, 2)


def _inner_roots(order: int) -> list[complex]:
    """Roots inside the unit circle of the filter's factor other than ``(1 + z)**order``; one of each complex pair."""
    binomial = np.roots([math.comb(order - 1 + k, k) for k in range(order - 1, -1, -1)])
    upper = sorted((complex(y) for y in binomial if y.imag > -1e-9), key=lambda y: y.real)
    roots = []
    for y in upper:
        half = 1 - 2 * y  # y = (2 - z - 1/z) / 4
        z = half + np.sqrt(complex(half * half - 1))
        z = z if abs(z) < 1 else 1 / z
        roots.append(complex(z.real, 0.0 if abs(y.imag) < 1e-9 else z.imag))
    return roots
