from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.flow.noise import Retake, SongNoise, initial_noise, normal, song_generators, uniform

SEEDS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3)


@given(seeds=SEEDS, frames=st.integers(1, 40))
def test_initial_noise_is_independent_of_the_batch(seeds: list[int], frames: int) -> None:
    together = initial_noise((len(seeds), frames, 64), seeds)
    for song, seed in enumerate(seeds):
        assert torch.equal(together[song], initial_noise((1, frames, 64), [seed])[0])
        assert torch.equal(together[song], initial_noise((1, frames, 64), seed)[0])
        assert torch.equal(together[song], initial_noise((1, frames + 3, 64), [seed])[0, :frames])


@given(seeds=SEEDS, data=st.data())
def test_draws_are_independent_of_the_batch(seeds: list[int], data: st.DataObject) -> None:
    frames = [data.draw(st.integers(1, 12)) for _ in seeds]
    together = SongNoise(song_generators(seeds), frames)
    alone = [SongNoise(song_generators([seed]), [length]) for seed, length in zip(seeds, frames, strict=True)]
    for _ in range(3):
        draw = together()
        assert draw.shape == (len(seeds), max(frames), 64)
        for song, length in enumerate(frames):
            assert torch.equal(draw[song, :length], alone[song]()[0])
            assert not draw[song, length:].any()


def test_first_draw_is_the_initial_noise() -> None:
    assert torch.equal(SongNoise(song_generators([3, 4]), [7, 7])(), initial_noise((2, 7, 64), [3, 4]))


def test_number_of_seeds_must_match_the_songs() -> None:
    for draw in (lambda: normal((2, 3, 4), song_generators([1])), lambda: uniform(2, song_generators([1]))):
        with pytest.raises(ValueError, match="1 for 2 songs"):
            draw()
    with pytest.raises(ValueError, match="seeds"):
        SongNoise(song_generators([1]), [3, 4])()


def test_uniform_per_song() -> None:
    assert torch.equal(uniform(2, song_generators([1, 2]))[1:], uniform(1, song_generators([2])))


@given(variance=st.floats(0, 1))
def test_retake_keeps_the_variance(variance: float) -> None:
    noise, other = initial_noise((1, 500, 64), 0), initial_noise((1, 500, 64), 1)
    assert abs(Retake(variance=variance)(noise, other).std().item() - 1) < 0.02


def test_retake_ends() -> None:
    noise, other = initial_noise((1, 5, 64), 0), initial_noise((1, 5, 64), 1)
    assert torch.equal(Retake()(noise, other), noise)
    torch.testing.assert_close(Retake(variance=1.0)(noise, other), other)
    with pytest.raises(ValueError, match=r"retake.variance=1.5"):
        Retake(variance=1.5)
