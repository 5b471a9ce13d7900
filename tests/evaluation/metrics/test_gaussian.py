"""Statistics of embedding windows: precision, errors, and files that other tools read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.evaluation.metrics.fad import Gaussian, read_statistics, write_statistics


def windows(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 100


def test_covariance_is_unbiased_and_float64():
    x = windows(300)
    gaussian = Gaussian.fit(x)
    np.testing.assert_allclose(gaussian.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    assert Gaussian.fit(x.half()).mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 4), "windows >= 1"),
        (torch.full((3, 4), float("nan")), "NaN"),
        (torch.full((3, 4), float("inf")), "NaN or infinity"),
    ],
)
def test_invalid_windows_are_errors(bad: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Gaussian.fit(bad)


def test_one_window_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2"):
        Gaussian.fit(windows(1))


def test_statistics_round_trip(tmp_path: Path):
    gaussian = Gaussian.fit(windows(40))
    write_statistics(tmp_path / "s.npz", windows(40), "clap-laion-music", songs=4, settings={"hop_seconds": 1.0})
    read = read_statistics(tmp_path / "s.npz", "clap-laion-music")
    assert read.n == 40
    assert torch.equal(read.mean, gaussian.mean)
    assert torch.equal(read.covariance, gaussian.covariance)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["scatter"] / 39, gaussian.covariance.numpy(), rtol=1e-15)


def test_files_are_compatible_with_fadtk(tmp_path: Path):
    write_statistics(tmp_path / "ours.npz", windows(40), "vggish", songs=4)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert file["vggish.mu"].shape == (6,)
        assert file["vggish.cov"].shape == (6, 6)
        assert file["n_files"] == 4
    gaussian = Gaussian.fit(windows(40))
    np.savez(tmp_path / "theirs.npz", **{"vggish.mu": gaussian.mean.numpy(), "vggish.cov": gaussian.covariance.numpy()})
    assert read_statistics(tmp_path / "theirs.npz", "vggish").n is None
    with pytest.raises(ValueError, match="no statistics of encodec"):
        read_statistics(tmp_path / "theirs.npz", "encodec")


def test_another_embedding_in_our_file_is_refused(tmp_path: Path):
    write_statistics(tmp_path / "s.npz", windows(40), "vggish", songs=4)
    with pytest.raises(ValueError, match="no statistics of clap"):
        read_statistics(tmp_path / "s.npz", "clap")
