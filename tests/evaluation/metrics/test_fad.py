"""The Fréchet distance against closed forms, its bias formula, SciPy and torchmetrics; the extrapolation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from acestep.evaluation.metrics.fad import (
    Gaussian,
    RankDeficientWarning,
    fad_infinity,
    frechet_distance,
    half_distances,
    song_distance,
)
from acestep.evaluation.statistics import Z95, population_std


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def gaussian(mean: list[float], covariance: Tensor) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), covariance.to(torch.float64))


def exact(d: int) -> Gaussian:
    return Gaussian(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (gaussian([0] * 4, torch.eye(4)), gaussian([1, 2, 2, 0], torch.eye(4)), 9.0),
        (gaussian([0] * 4, 4 * torch.eye(4)), gaussian([0] * 4, torch.eye(4)), 4.0),
        (
            gaussian([0] * 4, torch.tensor([1.0, 4, 9, 16]).diag()),
            gaussian([0] * 4, torch.tensor([4.0, 1, 16, 9]).diag()),
            4.0,
        ),
        (gaussian([0], torch.tensor([[4.0]])), gaussian([3], torch.tensor([[1.0]])), 10.0),
        (
            gaussian([0, 0], torch.tensor([[2.0, 1], [1, 2]])),
            gaussian([0, 0], torch.tensor([1.0, 3]).diag()),
            8 - 2 * math.sqrt(14),
        ),
    ],
    ids=["F2 shift", "F3 scale", "F4 diagonal", "F5 one dimension", "F6 do not commute"],
)
def test_closed_forms(a: Gaussian, b: Gaussian, expected: float):
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_scaling_rotation_shift_and_order():
    x, y = normal(300, 8), normal(250, 8, seed=1) @ torch.diag(torch.linspace(0.5, 2, 8).double()) + 0.3
    rotation = torch.linalg.qr(normal(8, 8, seed=2)).Q
    distance = frechet_distance(Gaussian.fit(x), Gaussian.fit(y))
    assert distance > 0.1

    def of(a: Tensor, b: Tensor) -> float:
        return frechet_distance(Gaussian.fit(a), Gaussian.fit(b))

    assert of(y, x) == pytest.approx(distance, rel=1e-9)
    assert of(3 * x, 3 * y) == pytest.approx(9 * distance, rel=1e-9)
    assert of(x @ rotation + 5, y @ rotation + 5) == pytest.approx(distance, rel=1e-9)


def test_fewer_windows_than_dimensions_stay_real_and_warn():
    x = Gaussian.fit(normal(50, 128))
    with pytest.warns(RankDeficientWarning, match="50 windows in 128 dimensions"):
        assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-4)


def test_enough_windows_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = Gaussian.fit(normal(600, 64))
        assert frechet_distance(x, x) < 1e-9


def test_bias_of_a_finite_sample():
    """A set of 2,000 songs from the reference's own distribution is 0.55 away from it, 20 seeds over."""
    values = [frechet_distance(exact(64), Gaussian.fit(normal(2000, 64, seed))) for seed in range(20)]
    assert np.mean(values) == pytest.approx(0.552, abs=0.02)


def test_extrapolation_removes_the_bias_and_drawing_with_replacement_would_not():
    biased, unbiased, replaced = [], [], []
    for seed in range(20):
        songs = list(normal(2000, 64, seed)[:, None])
        line = fad_infinity(songs, exact(64), generator(seed))
        unbiased.append(line.value)
        biased.append(frechet_distance(exact(64), Gaussian.fit(torch.cat(songs))))
        replaced.append(with_replacement(torch.cat(songs), generator(seed)))
    assert abs(np.mean(unbiased)) < 0.1
    assert max(map(abs, unbiased)) < 0.1
    assert np.mean(biased) > 0.5
    assert np.mean(replaced) > 0.4, "this control extrapolates to the sample's own distance"


def with_replacement(windows: Tensor, draw: torch.Generator) -> float:
    sizes = np.linspace(500, len(windows), 8).astype(int)
    values = []
    for n in sizes:
        rows = torch.randint(len(windows), (int(n),), generator=draw)
        values.append(frechet_distance(exact(windows.shape[1]), Gaussian.fit(windows[rows])))
    return float(np.polyfit(1 / sizes, values, 1)[1])


def test_extrapolation_draws_whole_songs():
    """50 songs of 40 windows that share 90 % of their variance: windows are not independent, songs are."""
    songs = [math.sqrt(0.9) * normal(1, 64, seed) + math.sqrt(0.1) * normal(40, 64, 1000 + seed) for seed in range(50)]
    by_song = fad_infinity(songs, exact(64), generator()).value
    by_window = fad_infinity(list(torch.cat(songs)[:, None]), exact(64), generator()).value
    assert by_window > 15
    assert by_song < 10


def test_extrapolation_is_seeded_and_refuses_a_handful():
    songs = list(normal(40, 3)[:, None])
    assert fad_infinity(songs, exact(3), generator(5)) == fad_infinity(songs, exact(3), generator(5))
    with pytest.raises(ValueError, match="at least 8 songs"):
        fad_infinity(songs[:7], exact(3), generator())


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, pytest.param(0.7, marks=pytest.mark.long)])
def test_intervals_of_the_extrapolation_cover_the_truth(shift: float):
    """Of 200 simulated evaluations of 80 songs, at least 90 % cover."""
    covered = 0
    for seed in range(200):
        windows = normal(80, 6, seed)
        windows[:, 0] += shift
        songs = list(windows[:, None])
        line = fad_infinity(songs, exact(6), generator(seed))
        error = math.hypot(line.standard_error, population_std(half_distances(songs, exact(6), generator(seed))))
        covered += abs(line.value - shift**2) <= Z95 * error
    assert covered >= 180


def test_the_error_from_halves_is_the_spread_of_the_estimate():
    estimates, errors = [], []
    for seed in range(60):
        windows = normal(100, 4, seed) + torch.tensor([1.0, 0, 0, 0])
        estimates.append(frechet_distance(exact(4), Gaussian.fit(windows)))
        errors.append(population_std(half_distances(list(windows[:, None]), exact(4), generator(seed))))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.25)
    with pytest.raises(ValueError, match="at least 8 songs"):
        half_distances(list(normal(7, 4)[:, None]), exact(4), generator())


def test_equal_halves_make_the_error_of_a_difference_smaller():
    x = normal(60, 4) + 1.0
    y = x + 0.05 * normal(60, 4, 1)
    first, second = (half_distances(list(one[:, None]), exact(4), generator(3)) for one in (x, y))
    assert population_std([a - b for a, b in zip(first, second, strict=True)]) < 0.5 * population_std(first)


def test_agrees_with_scipy_on_full_rank():
    a, b = Gaussian.fit(normal(500, 16)), Gaussian.fit(normal(400, 16, 1) * 1.3 + 0.2)
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    expected = float((a.mean - b.mean).square().sum()) + np.trace(
        a.covariance.numpy() + b.covariance.numpy() - 2 * root.real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_agrees_with_torchmetrics_on_the_same_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = normal(500, 16), normal(400, 16, 1) * 1.3 + 0.2
    same = nn.Identity()
    same.num_features = 16
    peer = FrechetInceptionDistance(feature=same, normalize=True).set_dtype(torch.float64)
    peer.update(x, real=True)
    peer.update(y, real=False)
    ours = frechet_distance(Gaussian.fit(x), Gaussian.fit(y))
    assert ours == pytest.approx(float(peer.compute()), abs=1e-10)


def test_a_songs_own_distance_is_the_same_number_from_a_smaller_matrix():
    song, reference = normal(9, 24, 5) * 1.5 + 0.3, Gaussian.fit(normal(400, 24))
    with pytest.warns(RankDeficientWarning):
        expected = frechet_distance(reference, Gaussian.fit(song))
    # The large matrix has zero eigenvalues, of whose rounding the roots are taken.
    assert song_distance(song, reference) == pytest.approx(expected, rel=1e-7)
    with pytest.raises(ValueError, match="at least 2"):
        song_distance(song[:1], reference)


def test_different_embeddings_are_not_compared():
    with pytest.raises(ValueError, match="different embeddings"):
        frechet_distance(exact(3), exact(4))
