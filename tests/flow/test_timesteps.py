from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.flow.noise import song_generators
from acestep.flow.timesteps import (
    Discrete,
    LogitNormal,
    LogitNormalMax,
    Stratified,
    Timesteps,
    Uniform,
    Warped,
    validation_grid,
)

# What each trainer of this model draws: mean of t, share below 0.25, share above 0.75.
TABLE = [
    (LogitNormalMax(), 0.535, 0.06, 0.13),
    (LogitNormal(), 0.418, 0.24, 0.07),
    (Discrete(), 0.735, 0.00, 0.50),
    (Uniform(), 0.500, 0.25, 0.25),
    (Warped(base=Uniform(), shift=3.0), 0.677, 0.10, 0.50),
    (Warped(base=LogitNormal(mu=0.0), shift=3.0), 0.714, 0.01, 0.50),
    (LogitNormal(mu=math.log(3)), 0.714, 0.01, 0.50),
    (Stratified(), 0.535, 0.06, 0.13),
]
DISTRIBUTIONS = [row[0] for row in TABLE]


@pytest.mark.parametrize(("timesteps", "mean", "low", "high"), TABLE, ids=lambda value: str(value))
def test_moments(timesteps: Timesteps, mean: float, low: float, high: float) -> None:
    t = timesteps(200_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32
    assert t.mean().item() == pytest.approx(mean, abs=0.003)
    assert (t < 0.25).float().mean().item() == pytest.approx(low, abs=0.006)
    assert (t > 0.75).float().mean().item() == pytest.approx(high, abs=0.006)


def test_maximum_is_the_maximum_of_two_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.sigmoid(-0.4 + torch.randn(200_000, 2, generator=generator)).amax(1)
    levels = torch.linspace(0.05, 0.95, 19).double()
    torch.testing.assert_close(
        LogitNormalMax().quantile(levels).float(), pairs.quantile(levels.float()), atol=4e-3, rtol=0
    )


@pytest.mark.parametrize("timesteps", DISTRIBUTIONS, ids=str)
@given(u=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_quantiles_rise_within_the_unit_interval(timesteps: Timesteps, u: list[float]) -> None:
    t = timesteps.quantile(torch.tensor(sorted(u)))
    assert t.isfinite().all()
    assert (t >= 0).all()
    assert (t <= 1).all()
    assert (t.diff() >= -1e-12).all()


@pytest.mark.parametrize("timesteps", DISTRIBUTIONS[:-1], ids=str)
def test_per_song_generators_are_independent_of_the_batch(timesteps: Timesteps) -> None:
    together = timesteps(3, song_generators([1, 2, 3]))
    assert torch.equal(together[1:2], timesteps(1, song_generators([2])))


@given(n=st.integers(1, 64), seed=st.integers(0, 99))
def test_one_draw_from_each_stratum(n: int, seed: int) -> None:
    t = Stratified(base=Uniform())(n, torch.Generator().manual_seed(seed))
    assert sorted((t.double() * n - 1e-6).floor().clamp(min=0).tolist()) == list(range(n))


@given(first=st.integers(0, 100), cut=st.integers(1, 7))
def test_strata_are_independent_of_the_division_into_batches(first: int, cut: int) -> None:
    timesteps = Stratified(base=Uniform(), strata=8)
    block = range(8 * first, 8 * first + 8)
    whole = timesteps(8, song_generators(block), block)
    parts = [timesteps(len(p), song_generators(p), p) for p in (block[:cut], block[cut:])]
    assert torch.equal(whole, torch.cat(parts))
    assert sorted((whole.double() * 8 - 1e-6).floor().clamp(min=0).tolist()) == list(range(8))


def test_strata_need_one_generator_or_sample_indices() -> None:
    with pytest.raises(ValueError, match="one generator"):
        Stratified()(2, song_generators([1, 2]))
    with pytest.raises(ValueError, match=r"timesteps.strata=0"):
        Stratified(strata=0)


def test_validation_grid() -> None:
    assert validation_grid(4).tolist() == [0.125, 0.375, 0.625, 0.875]
    with pytest.raises(ValueError, match=r"validation_times=0: need at least 1"):
        validation_grid(0)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (LogitNormal, {"sigma": 0.0}, r"timesteps.sigma=0.0"),
        (Uniform, {"low": 0.5, "high": 0.5}, r"timesteps.low=0.5"),
        (Discrete, {"values": [0.0]}, r"timesteps.values=\[0.0\]"),
        (Warped, {"shift": 0.0}, r"timesteps.shift=0.0"),
    ],
)
def test_refusals(cls: type, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)
