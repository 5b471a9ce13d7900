"""Streaming statistics: exact merging, loud errors, and files that other tools read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.evaluation.metrics.gaussian import Moments, read_moments, read_statistics, write_statistics


def windows(n: int, d: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 100


def test_merging_parts_in_any_order_equals_pooling():
    x = windows(500)
    pooled = Moments.of(x)
    parts = [Moments.of(part) for part in x.split([1, 7, 292, 200])]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        merged = parts[order[0]]
        for i in order[1:]:
            merged = merged.merge(parts[i])
        assert merged.n == 500
        torch.testing.assert_close(merged.mean, pooled.mean, rtol=1e-12, atol=1e-12)
        # Off the diagonal sums nearly cancel: their rounding is that of the diagonal's size.
        largest = float(pooled.scatter.abs().max())
        torch.testing.assert_close(merged.scatter / largest, pooled.scatter / largest, rtol=0, atol=1e-12)


def test_covariance_is_the_unbiased_one_and_float64_whatever_comes_in():
    x = windows(300)
    gaussian = Moments.of(x).gaussian()
    np.testing.assert_allclose(gaussian.covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12)
    assert Moments.of(x.half()).mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(0, 4), "windows >= 1"),
        (torch.full((3, 4), float("nan")), "NaN"),
        (torch.full((3, 4), float("inf")), "NaN or infinity"),
    ],
)
def test_what_has_no_statistics_is_an_error(bad: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Moments.of(bad)


def test_one_window_has_no_covariance_but_can_be_merged():
    one = Moments.of(windows(1))
    with pytest.raises(ValueError, match="at least 2"):
        one.gaussian()
    assert one.merge(Moments.of(windows(1, seed=1))).gaussian().n == 2


def test_statistics_round_trip_with_all_that_merging_needs(tmp_path: Path):
    moments = Moments.of(windows(40))
    write_statistics(tmp_path / "s.npz", moments, "clap-laion-music", songs=4, settings={"hop_seconds": 1.0})
    read = read_statistics(tmp_path / "s.npz", "clap-laion-music")
    assert read.n == 40
    assert torch.equal(read.mean, moments.mean)
    assert torch.equal(read.covariance, moments.gaussian().covariance)
    again = read_moments(tmp_path / "s.npz", "clap-laion-music")
    assert torch.equal(again.scatter, moments.scatter)


def test_fadtk_finds_its_keys_in_our_file_and_we_find_ours_in_its(tmp_path: Path):
    moments = Moments.of(windows(40))
    write_statistics(tmp_path / "ours.npz", moments, "vggish", songs=4)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert file["vggish.mu"].shape == (6,)
        assert file["vggish.cov"].shape == (6, 6)
        assert file["n_files"] == 4
    gaussian = moments.gaussian()
    np.savez(tmp_path / "theirs.npz", **{"vggish.mu": gaussian.mean.numpy(), "vggish.cov": gaussian.covariance.numpy()})
    assert read_statistics(tmp_path / "theirs.npz", "vggish").n is None
    with pytest.raises(ValueError, match="no statistics of encodec"):
        read_statistics(tmp_path / "theirs.npz", "encodec")
    with pytest.raises(ValueError, match="only statistics written here"):
        read_moments(tmp_path / "theirs.npz", "vggish")


def test_another_embedding_in_our_file_is_refused(tmp_path: Path):
    write_statistics(tmp_path / "s.npz", Moments.of(windows(40)), "vggish", songs=4)
    with pytest.raises(ValueError, match="no statistics of clap"):
        read_statistics(tmp_path / "s.npz", "clap")
