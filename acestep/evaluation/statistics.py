"""How sure a mean over prompts is: bootstrap intervals and paired tests, seeded and vectorised.

The unit that is drawn is the prompt. Several songs of one prompt are averaged first; distances between sets (FAD, KAD)
are never bootstrapped: drawing with replacement adds their bias a second time and the interval misses the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Z95 = 1.959964
"""Standard errors to either side of an estimate that 95 % of estimates fall within."""


@dataclass(frozen=True)
class Interval:
    """A mean, its confidence interval and the number of prompts behind it."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def bounds(self) -> list[float]:
        """``[low, high]``, as it stands in summaries."""
        return [self.low, self.high]


def bootstrap(
    values: Sequence[float] | Float[Tensor, " n"],
    generator: torch.Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """BCa interval of the mean over prompts (Efron 1987); for a paired difference pass the differences.

    Args:
        values: one number for each prompt; none may be NaN.
        generator: draws the prompts.
        confidence: coverage of the interval.
        resamples: how many draws.
    """
    x = torch.as_tensor(values, dtype=torch.float64)
    if x.ndim != 1 or len(x) == 0 or not torch.isfinite(x).all():
        raise ValueError("an interval needs at least one value and none that is NaN: leave out prompts that failed")
    mean = float(x.mean())
    if len(x) == 1 or bool((x == x[0]).all()):
        return Interval(mean, mean, mean, len(x))
    draws = torch.cat([_means(x, rows, generator) for rows in _blocks(resamples, len(x))])
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    below = ((draws < mean).sum() + (draws == mean).sum() / 2) / resamples
    bias = torch.special.ndtri(below.to(torch.float64).clamp(1 / resamples, 1 - 1 / resamples))
    # For a mean, the jackknife's skewness is the sample's own: leaving out x_i moves it by (mean - x_i) / (n - 1).
    centred = x - x.mean()
    acceleration = centred.pow(3).sum() / (6 * centred.square().sum().pow(1.5))
    z = bias + torch.special.ndtri(tail)
    low, high = torch.quantile(draws, torch.special.ndtr(bias + z / (1 - acceleration * z))).tolist()
    return Interval(mean, low, high, len(x))


def paired_difference(
    a: Sequence[float] | Float[Tensor, " n"],
    b: Sequence[float] | Float[Tensor, " n"],
    generator: torch.Generator,
    *,
    resamples: int = 10_000,
) -> Interval:
    """Interval of the mean of ``a - b`` over the same prompts in the same order."""
    first, second = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"a paired difference needs the same prompts on both sides, got {len(first)} and {len(second)}"
        )
    return bootstrap(first - second, generator, resamples=resamples)


def sign_flip_test(
    differences: Sequence[float] | Float[Tensor, " n"], generator: torch.Generator, *, resamples: int = 10_000
) -> float:
    """Two-sided permutation p-value that paired differences have mean 0: signs are exchangeable if they have."""
    x = torch.as_tensor(differences, dtype=torch.float64)
    observed = x.mean().abs()
    hits = 0
    for rows in _blocks(resamples, len(x)):
        signs = torch.randint(0, 2, (rows, len(x)), generator=generator, dtype=torch.float64) * 2 - 1
        hits += int(((signs @ x / len(x)).abs() >= observed - 1e-15).sum())
    return (hits + 1) / (resamples + 1)


def spread(values: Sequence[float]) -> float:
    """Standard deviation around the values' own mean."""
    return float(torch.tensor(values, dtype=torch.float64).std(correction=0))


def effect_size(differences: Sequence[float] | Float[Tensor, " n"]) -> float | None:
    """Cohen's d_z of paired differences: their mean in units of their spread; ``None`` where they do not differ."""
    x = torch.as_tensor(differences, dtype=torch.float64)
    spread = float(x.std()) if len(x) > 1 else 0.0
    return float(x.mean()) / spread if spread > 0 else None


def prompts_needed(effect: float, power: float = 0.8, level: float = 0.05) -> int:
    """How many prompts a paired comparison needs to find an effect of this size, d_z, with the given power.

    The normal approximation, with the correction of half a squared quantile for the estimated spread (Guenther 1981).
    """
    if effect == 0:
        raise ValueError("an effect of 0 is found by no number of prompts")
    quantiles = torch.special.ndtri(torch.tensor([1 - level / 2, power], dtype=torch.float64))
    return math.ceil(float((quantiles.sum() / effect).square() + quantiles[0].square() / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be read together, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = highest
    return corrected


def _means(x: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    return x[torch.randint(0, len(x), (rows, len(x)), generator=generator)].mean(1)


def _blocks(resamples: int, n: int, budget: int = 4_000_000) -> list[int]:
    rows = max(1, budget // n)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]
