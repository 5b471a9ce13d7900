"""Statistics of means over prompts: bootstrap intervals, paired tests, effect sizes; seeded and vectorised.

The resampled unit is the prompt: several songs of one prompt are averaged first. Set distances (FAD, KAD) are never
bootstrapped: sampling with replacement adds their bias a second time and the interval misses the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

Z95 = 1.959964
"""Half the width of a 95 % confidence interval of a normal distribution, in standard errors."""
SEED = 0
"""Seed of every resampling, so that equal songs give an equal summary."""
MIN_PROMPTS = 30
WINDOWS_PER_DIMENSION, SONGS_FOR_FAD = 5, 300

Values = Sequence[float] | Float[Tensor, " n"]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` prompts and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def bounds(self) -> list[float]:
        return [self.low, self.high]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the keys of ``summary.json``."""
        return {"mean": self.mean, "ci95": self.bounds, "n": self.n}


def bootstrap(
    values: Values, generator: torch.Generator, *, confidence: float = 0.95, resamples: int = 10_000
) -> Interval:
    """BCa bootstrap interval of the mean over prompts (Efron 1987); for a paired difference pass the differences.

    Args:
        values: one number for each prompt; none may be NaN.
        generator: for the resampling.
        confidence: coverage of the interval.
        resamples: number of bootstrap samples.
    """
    x = torch.as_tensor(values, dtype=torch.float64)
    if x.ndim != 1 or len(x) == 0 or not torch.isfinite(x).all():
        raise ValueError("an interval needs at least one value and none that is NaN: leave out prompts that failed")
    mean = float(x.mean())
    if len(x) == 1 or bool((x == x[0]).all()):
        return Interval(mean, mean, mean, len(x))
    samples = [
        x[torch.randint(0, len(x), (rows, len(x)), generator=generator)].mean(1)
        for rows in _chunk_sizes(resamples, len(x))
    ]
    means = torch.cat(samples)
    tail = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    below = ((means < mean).sum() + (means == mean).sum() / 2) / resamples
    bias = torch.special.ndtri(below.to(torch.float64).clamp(1 / resamples, 1 - 1 / resamples))
    # For a mean, the jackknife's skewness is the sample's own: leaving out x_i moves it by (mean - x_i) / (n - 1).
    centred = x - x.mean()
    acceleration = centred.pow(3).sum() / (6 * centred.square().sum().pow(1.5))
    z = bias + torch.special.ndtri(tail)
    low, high = torch.quantile(means, torch.special.ndtr(bias + z / (1 - acceleration * z))).tolist()
    return Interval(mean, low, high, len(x))


def paired_difference(a: Values, b: Values, generator: torch.Generator, *, resamples: int = 10_000) -> Interval:
    """Interval of the mean of ``a - b`` over the same prompts in the same order."""
    first, second = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    if first.shape != second.shape:
        raise ValueError(
            f"a paired difference needs the same prompts on both sides, got {len(first)} and {len(second)}"
        )
    return bootstrap(first - second, generator, resamples=resamples)


def sign_flip_test(differences: Values, generator: torch.Generator, *, resamples: int = 10_000) -> float:
    """Two-sided permutation p-value that paired differences have mean 0: signs are exchangeable if they have."""
    x = torch.as_tensor(differences, dtype=torch.float64)
    observed = x.mean().abs()
    extreme = 0
    for rows in _chunk_sizes(resamples, len(x)):
        signs = torch.randint(0, 2, (rows, len(x)), generator=generator, dtype=torch.float64) * 2 - 1
        extreme += int(((signs @ x / len(x)).abs() >= observed - 1e-15).sum())
    return (extreme + 1) / (resamples + 1)


def population_std(values: Sequence[float]) -> float:
    """Standard deviation without Bessel's correction."""
    return float(torch.tensor(values, dtype=torch.float64).std(correction=0))


def effect_size(differences: Values) -> float | None:
    """Cohen's d_z of paired differences: mean over standard deviation; ``None`` where they are all equal."""
    x = torch.as_tensor(differences, dtype=torch.float64)
    std = float(x.std()) if len(x) > 1 else 0.0
    return float(x.mean()) / std if std > 0 else None


def prompts_needed(effect: float, power: float = 0.8, level: float = 0.05) -> int:
    """Number of prompts for which a paired comparison detects an effect of this size, d_z, with the given power.

    Normal approximation, with the correction of half a squared quantile for the estimated variance (Guenther 1981).
    """
    if effect == 0:
        raise ValueError("an effect of 0 cannot be detected with any number of prompts")
    quantiles = torch.special.ndtri(torch.tensor([1 - level / 2, power], dtype=torch.float64))
    return math.ceil(float((quantiles.sum() / effect).square() + quantiles[0].square() / 2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction for multiple comparisons, in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = highest
    return corrected


def paired_test(values: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Paired comparison of scores of the same prompts, JSON-ready.

    Returns:
        ``mean``, ``ci95`` and ``n`` of ``values - base``, effect size d_z (``effect``), the number of prompts that
        would detect it with a power of 80 % (``prompts_needed``), and the p-value of a sign-flip test (``p``).
    """
    change = paired_difference(values, base, torch.Generator().manual_seed(SEED))
    differences = [a - b for a, b in zip(values, base, strict=True)]
    effect = effect_size(differences)
    return {
        **change.as_dict(),
        "effect": effect,
        "prompts_needed": prompts_needed(effect) if effect else None,
        "p": sign_flip_test(differences, torch.Generator().manual_seed(SEED)),
    }


def paired_tests(pairs: Mapping[Key, tuple[Sequence[float], Sequence[float]]]) -> dict[Key, dict[str, Any]]:
    """:func:`paired_test` of every pair that is not empty, with ``p_holm``: p-values corrected over all of them."""
    tests = {key: paired_test(*pair) for key, pair in pairs.items() if pair[0]}
    corrected = holm([test["p"] for test in tests.values()])
    return {key: {**test, "p_holm": p} for (key, test), p in zip(tests.items(), corrected, strict=True)}


def sample_size_warnings(prompts: int, sets: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence for each number that too few prompts or windows make unreliable.

    Args:
        prompts: number of prompts.
        sets: scores of all songs of one sweep point together, by metric.
    """
    warnings = []
    if prompts < MIN_PROMPTS:
        warnings.append(f"{prompts} prompts: intervals of means are rough below {MIN_PROMPTS}")
    for metric, values in sets.items():
        if "dimensions" in values and values["windows"] < WINDOWS_PER_DIMENSION * values["dimensions"]:
            warnings.append(
                f"{metric}: {values['windows']:g} windows in {values['dimensions']:g} dimensions; compare it only at "
                f"equal numbers of songs, and quote it from {WINDOWS_PER_DIMENSION * values['dimensions']:g} windows "
                f"and {SONGS_FOR_FAD} songs on; a kernel distance (kad) needs fewer"
            )
    return warnings


def _chunk_sizes(resamples: int, n: int, budget: int = 4_000_000) -> list[int]:
    """Numbers of resamples to draw at a time, so that no tensor has more than ``budget`` elements."""
    rows = max(1, budget // n)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]
