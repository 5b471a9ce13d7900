from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data.folder import Means, write_songs
from torch.utils.data import DataLoader

from acestep.data import EpochBatches, EpochIndex, ExampleConfig, LatentBatch, LatentDataset, LatentStore, collate
from acestep.data.preprocess import Preprocess


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Preprocess(shard_songs=3)(write_songs(folder / "songs", 8), folder / "store", Means)
    return folder / "store"


def test_whole_songs(store: Path) -> None:
    songs = LatentDataset(store)
    opened = LatentStore(store)
    for index in range(8):
        example = songs[index]
        assert example.song == opened.song(index)
        assert example.mean.dtype is torch.float16
        assert torch.equal(example.mean, opened.latents(index)[0])
        assert torch.equal(example.scale, opened.latents(index)[1])


def test_a_crop_is_a_piece_of_the_song_with_its_own_duration(store: Path) -> None:
    songs, whole = LatentDataset(store, config=ExampleConfig(crop_frames=30)), LatentDataset(store)
    starts = set()
    for epoch in range(300):
        crop = songs[EpochIndex(epoch, 7)]
        assert crop.mean.shape == (30, 4)
        assert crop.song.seconds == pytest.approx(1.2)
        (start,) = [at for at in range(len(whole[7].mean) - 29) if torch.equal(whole[7].mean[at : at + 30], crop.mean)]
        starts.add(start)
    assert {min(starts), max(starts)} == {0, len(whole[7].mean) - 30}
    assert torch.equal(songs[0].mean, whole[0].mean)
    assert songs[0].song == whole[0].song


def test_a_crop_depends_on_seed_epoch_and_song_alone(store: Path) -> None:
    first, again, other = (LatentDataset(store, config=ExampleConfig(crop_frames=20), seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(3)
    crops = [first[EpochIndex(2, index)].mean for index in range(8)]
    assert all(torch.equal(again[EpochIndex(2, index)].mean, crops[index]) for index in reversed(range(8)))
    assert any(not torch.equal(other[EpochIndex(2, index)].mean, crops[index]) for index in range(8))
    assert any(not torch.equal(first[EpochIndex(3, index)].mean, crops[index]) for index in range(8))
    with pytest.raises(ValueError, match="crop_frames=0"):
        LatentDataset(store, config=ExampleConfig(crop_frames=0))


def test_held_out_songs_are_disjoint_and_do_not_depend_on_the_order(store: Path, tmp_path: Path) -> None:
    training, held_out = LatentDataset(store).split(3)
    assert sorted([*training.rows, *held_out.rows]) == list(range(8))
    assert len(held_out) == 3
    songs = store.parent / "songs"
    for name in reversed(sorted(path.name for path in songs.glob("*.wav"))):
        (tmp_path / "songs").mkdir(exist_ok=True)
        (tmp_path / "songs" / name).write_bytes((songs / name).read_bytes())
        Preprocess()(tmp_path / "songs", tmp_path / "store", Means)
    assert _hashes(LatentDataset(tmp_path / "store").split(3)[1]) == _hashes(held_out)
    assert any(_hashes(LatentDataset(store).split(3, seed)[1]) != _hashes(held_out) for seed in range(1, 5))
    with pytest.raises(ValueError, match="held_out=8"):
        training.split(8)


def _hashes(songs: LatentDataset) -> set[str]:
    return {songs.store.sha256[row] for row in songs.rows}


def test_a_batch_is_padded_with_zeros_and_has_a_mask(store: Path) -> None:
    songs = LatentDataset(store)
    batch = collate([songs[3], songs[0]])
    assert batch.mean.shape == batch.scale.shape == (2, 40, 4)
    assert batch.frames == [40, 25]
    assert batch.indices == [3, 0]
    assert len(batch) == 2
    assert torch.equal(batch.mean[1, :25], songs[0].mean)
    assert not batch.mean[1, 25:].any()
    assert not batch.frame_mask[1, 25:].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(store: Path, workers: int) -> None:
    songs = LatentDataset(store, config=ExampleConfig(crop_frames=20))
    loader: DataLoader[LatentBatch] = DataLoader(
        songs, batch_sampler=EpochBatches(8, 3), collate_fn=collate, num_workers=workers
    )
    epochs = [list(loader) for _ in range(2)]
    for epoch, batches in enumerate(epochs):
        for batch in batches:
            for row, index in enumerate(batch.indices):
                assert torch.equal(batch.mean[row], songs[EpochIndex(epoch, index)].mean)
