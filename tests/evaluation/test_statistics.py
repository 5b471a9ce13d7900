"""Coverage of intervals, level and power of tests, and errors instead of NaN."""

from __future__ import annotations

import pytest
import scipy.stats
import torch

from acestep.evaluation.statistics import (
    bootstrap,
    effect_size,
    holm,
    paired_difference,
    prompts_needed,
    sign_flip_test,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_interval_agrees_with_scipys_bca():
    x = torch.rand(40, generator=generator(), dtype=torch.float64) ** 3
    interval = bootstrap(x, generator())
    expected = scipy.stats.bootstrap((x.numpy(),), lambda v, axis: v.mean(axis), n_resamples=20_000, rng=0)
    assert interval.mean == pytest.approx(float(x.mean()))
    assert interval.bounds == pytest.approx(list(expected.confidence_interval), abs=0.006)
    assert interval.n == 40


def test_intervals_cover_the_truth():
    """Of 200 simulated evaluations of 100 prompts with skewed scores, at least 90 % cover."""
    covered = 0
    for seed in range(200):
        scores = -torch.rand(100, generator=generator(seed), dtype=torch.float64).log()
        interval = bootstrap(scores, generator(1000 + seed), resamples=2000)
        covered += interval.low <= 1.0 <= interval.high
    assert covered >= 180


def test_pairing_removes_the_variance_of_prompts():
    difficulty = torch.randn(100, generator=generator(), dtype=torch.float64)
    better = difficulty + 0.1 + 0.05 * torch.randn(100, generator=generator(1), dtype=torch.float64)
    change = paired_difference(better, difficulty, generator())
    assert change.low > 0
    assert change.high - change.low < 0.05
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0, 2.0], [1.0], generator())


def test_the_same_seed_gives_the_same_interval():
    x = torch.randn(30, generator=generator())
    assert bootstrap(x, generator(7)) == bootstrap(x, generator(7))


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_interval_without_values(values: list[float]):
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap(values, generator())


def test_constant_scores_have_an_interval_of_no_width():
    assert bootstrap([0.5, 0.5, 0.5], generator()).bounds == [0.5, 0.5]


def test_sign_flip_test_detects_a_shift_and_no_noise():
    noise = torch.randn(60, generator=generator(), dtype=torch.float64)
    noise -= noise.mean()
    assert sign_flip_test(noise + 1.0, generator()) < 0.001
    assert sign_flip_test(noise, generator()) > 0.9


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_effect_size_and_the_prompts_that_detect_it():
    assert effect_size([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert effect_size([1.0, 1.0]) is None
    assert effect_size([1.0]) is None
    # Cohen's tables for a paired two-sided test at 5 % and a power of 80 %: 34 for 0.5, 199 for 0.2.
    assert prompts_needed(0.5) == pytest.approx(34, abs=1)
    assert prompts_needed(-0.2) == pytest.approx(199, abs=1)
    with pytest.raises(ValueError, match="effect of 0"):
        prompts_needed(0.0)


def test_prompts_needed_gives_a_power_of_80_percent():
    n, detected = prompts_needed(0.5), 0
    for seed in range(100):
        differences = torch.randn(n, generator=generator(seed), dtype=torch.float64) + 0.5
        detected += sign_flip_test(differences, generator(seed), resamples=400) < 0.05
    assert 70 <= detected <= 90
