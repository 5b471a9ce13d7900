"""A resumed run continues with exactly the batches not seen yet; batches of similar length have little padding."""

from __future__ import annotations

import random
from itertools import islice

import numpy as np
import pytest
import torch
from data.folder import Means, write_songs
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.data import Buckets, EpochBatches, ExampleConfig, LatentBatch, LatentDataset, collate
from acestep.data.preprocess import Preprocess
from acestep.training.datamodule import ResumableBatchSampler, ResumableDataLoader

SONGS, BATCH = 23, 2


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    folder = tmp_path_factory.mktemp("loader")
    Preprocess(shard_songs=5)(write_songs(folder / "songs", SONGS), folder / "store", Means)
    return LatentDataset(folder / "store", config=ExampleConfig(crop_frames=30), seed=3)


def _loader(songs: LatentDataset, workers: int, rank: int, ranks: int, done: int = 0) -> ResumableDataLoader:
    """The batches of two epochs after the first ``done``."""
    buckets = Buckets(frames=songs.frames, pool=4)
    batches = EpochBatches(SONGS, BATCH, seed=5, rank=rank, world_size=ranks, buckets=buckets)
    run = ResumableBatchSampler(batches, total=2 * len(batches), done=done)
    return ResumableDataLoader(songs, batch_sampler=run, num_workers=workers, collate_fn=collate)


def _same(one: LatentBatch, other: LatentBatch) -> bool:
    return one.indices == other.indices and torch.equal(one.mean, other.mean) and one.songs == other.songs


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_resumed_run_yields_what_was_not_seen(songs: LatentDataset, workers: int, ranks: int) -> None:
    moments = random.Random(workers)
    seen: list[int] = []
    for rank in range(ranks):
        whole = list(_loader(songs, 0, rank, ranks))
        epoch = len(whole) // 2
        for stop in moments.sample(range(1, len(whole)), 1 if workers == 3 else 3):
            taken = list(islice(_loader(songs, workers, rank, ranks), stop))
            rest = list(_loader(songs, moments.choice([0, workers]), rank, ranks, done=stop))
            assert len(taken) + len(rest) == len(whole)
            assert all(map(_same, [*taken, *rest], whole))
        seen += [index for batch in whole[:epoch] for index in batch.indices]
    assert len(set(seen)) == len(seen) == SONGS // (BATCH * ranks) * BATCH * ranks


LOG_NORMAL = np.random.default_rng(0).lognormal(np.log(200 * 25), 0.5, 20_000).astype(int)


def _padding(batches: EpochBatches) -> float:
    """Share of padding in one epoch, counted batch by batch."""
    lengths = [LOG_NORMAL[[draw.song for draw in batch]] for batch in batches]
    return 1 - sum(batch.sum() for batch in lengths) / sum(len(batch) * batch.max() for batch in lengths)


@pytest.mark.parametrize(("batch_size", "budget"), [(4, None), (16, None), (64, 24_000)])
def test_batches_of_log_normal_durations_pad_less_than_5_percent(batch_size: int, budget: int | None) -> None:
    batches = EpochBatches(len(LOG_NORMAL), batch_size, buckets=Buckets(frames=LOG_NORMAL, budget=budget))
    assert _padding(batches) == pytest.approx(batches.padding(LOG_NORMAL))
    assert batches.padding(LOG_NORMAL) < 0.05
    assert EpochBatches(len(LOG_NORMAL), batch_size).padding(LOG_NORMAL) > 0.25


def test_buckets_yield_every_song_once_in_a_new_order_each_epoch() -> None:
    frames = np.random.default_rng(0).integers(10, 100, 64)
    batches = EpochBatches(64, 4, buckets=Buckets(frames=frames, pool=4))
    first, second = list(batches), list(batches)
    for epoch in (first, second):
        assert sorted(draw.song for batch in epoch for draw in batch) == list(range(64))
    assert {frozenset(d.song for d in batch) for batch in first} != {frozenset(d.song for d in b) for b in second}
    with pytest.raises(ValueError, match="2 lengths for 5 songs"):
        EpochBatches(5, 1, buckets=Buckets(frames=np.array([1, 2])))


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=50),
    most=st.integers(1, 6),
    ranks=st.integers(1, 3),
    done=st.integers(0, 40),
)
def test_packed_batches_fit_the_budget_and_resume(lengths: list[int], most: int, ranks: int, done: int) -> None:
    frames, buckets = np.array(lengths), Buckets(frames=np.array(lengths), pool=3, budget=80)
    epochs = []
    for rank in range(ranks):
        batches = EpochBatches(len(frames), most, seed=3, rank=rank, world_size=ranks, buckets=buckets)
        epochs.append([list(batches) for _ in range(3)])
        resumed = EpochBatches(len(frames), most, seed=3, rank=rank, world_size=ranks, buckets=buckets)
        resumed.seek(done)
        flat = [batch for epoch in epochs[-1] for batch in epoch]
        if done < len(flat):
            rest = list(resumed)
            assert rest == flat[done : done + len(rest)]
    assert len({len(epoch) for rank in epochs for epoch in rank[:1]}) == 1
    seen = [draw.song for rank in epochs for batch in rank[0] for draw in batch]
    for batch in (batch for rank in epochs for epoch in rank for batch in epoch):
        sizes = frames[[draw.song for draw in batch]]
        assert len(batch) == 1 or (len(batch) <= most and len(batch) * sizes.max() <= 80)
    if ranks == 1:
        assert sorted(seen) == list(range(len(frames)))


def test_memory_of_a_batch_in_use_is_not_reused(songs: LatentDataset) -> None:
    loader = _loader(songs, 0, 0, 1)
    held = [(batch.mean, batch.mean.clone()) for batch in loader]
    assert all(torch.equal(mean, copy) for mean, copy in held)
