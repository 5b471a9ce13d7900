from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.flow.path import clean_estimate, noised, velocity_target


def pair(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 4, generator=generator)


def test_ends_are_data_and_noise() -> None:
    x0, noise = pair(0)
    assert torch.equal(noised(x0, noise, 0.0), x0)
    assert torch.equal(noised(x0, noise, 1.0), noise)


@given(t=st.floats(0, 1), seed=st.integers(0, 99))
def test_target_points_back_to_the_data(t: float, seed: int) -> None:
    x0, noise = pair(seed)
    torch.testing.assert_close(clean_estimate(noised(x0, noise, t), velocity_target(x0, noise), t), x0)


@given(seed=st.integers(0, 99))
def test_per_song_times_equal_single_songs(seed: int) -> None:
    x0, noise = pair(seed)
    t = torch.tensor([0.1, 0.5, 0.9])
    for song in range(3):
        alone = noised(x0[song : song + 1], noise[song : song + 1], t[song : song + 1])
        assert torch.equal(noised(x0, noise, t)[song : song + 1], alone)
        torch.testing.assert_close(alone, noised(x0[song : song + 1], noise[song : song + 1], t[song].item()))
