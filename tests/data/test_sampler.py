from __future__ import annotations

from itertools import chain, islice, repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.data import EpochBatches, EpochIndex


def stream(sampler: EpochBatches, count: int) -> list[list[EpochIndex]]:
    return list(islice(chain.from_iterable(repeat(sampler)), count))


@settings(deadline=None)
@given(
    songs=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
    done=st.integers(0, 60),
    seed=st.integers(0, 2**31),
)
def test_a_resumed_sampler_continues_where_it_stopped(
    songs: int, batch_size: int, world_size: int, done: int, seed: int
) -> None:
    for rank in range(world_size):
        whole = EpochBatches(songs, batch_size, seed=seed, rank=rank, world_size=world_size)
        resumed = EpochBatches(songs, batch_size, seed=seed, rank=rank, world_size=world_size)
        resumed.seek(done)
        assert stream(resumed, 10) == stream(whole, done + 10)[done:]


@settings(deadline=None)
@given(songs=st.integers(1, 60), batch_size=st.integers(1, 5), world_size=st.integers(1, 3))
def test_ranks_get_different_songs_in_an_epoch(songs: int, batch_size: int, world_size: int) -> None:
    ranks = [EpochBatches(songs, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [index.song for sampler in ranks for batch in sampler for index in batch]
    per_step = batch_size * world_size
    assert len(seen) == max(1, songs // per_step) * per_step
    if songs >= per_step:
        assert len(set(seen)) == len(seen)
    else:
        assert set(seen) == set(range(songs))
    assert all(len(sampler) == max(1, songs // per_step) for sampler in ranks)


def test_every_epoch_has_a_new_order() -> None:
    sampler = EpochBatches(20, 4)
    first, second = list(sampler), list(sampler)
    assert {index.epoch for batch in second for index in batch} == {1}
    assert [[index.song for index in batch] for batch in first] != [[index.song for index in batch] for batch in second]
    assert list(EpochBatches(20, 4, seed=1)) != first


@pytest.mark.parametrize(
    ("songs", "batch_size", "rank", "message"), [(0, 1, 0, "songs=0"), (1, 0, 0, "batch_size=0"), (1, 1, 1, "rank=1")]
)
def test_invalid_arguments_are_refused(songs: int, batch_size: int, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochBatches(songs, batch_size, rank=rank)
