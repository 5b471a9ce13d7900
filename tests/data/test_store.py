from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from data.folder import Means, write_songs

from acestep.data import LatentStore
from acestep.data.preprocess import Preprocess
from acestep.songs import Song


@pytest.fixture
def store(tmp_path: Path) -> Path:
    Preprocess(shard_songs=3)(write_songs(tmp_path / "songs", 5), tmp_path / "store", Means)
    return tmp_path / "store"


def test_songs_and_frames_across_shards(store: Path) -> None:
    opened = LatentStore(store)
    assert len(opened) == 5
    assert opened.frames.tolist() == [25, 30, 35, 40, 45]
    assert opened.frames_per_second == 25
    assert opened.song(4) == Song(caption="caption 4", seconds=1.8)
    assert [len(opened.latents(index)[0]) for index in range(5)] == opened.frames.tolist()
    whole, part = opened.latents(4), opened.latents(4, first=3, frames=10)
    np.testing.assert_array_equal(part[0], whole[0][3:13])
    np.testing.assert_array_equal(part[1], whole[1][3:13])
    with pytest.raises(IndexError):
        opened.song(5)


def test_load_dataset_reads_a_store(store: Path, tmp_path: Path) -> None:
    opened = LatentStore(store)
    plain = datasets.load_dataset(str(store), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(plain) == 5
    for index in range(5):
        np.testing.assert_array_equal(np.float16(plain[index]["mean"]), opened.latents(index)[0])
        assert plain[index]["caption"] == opened.song(index).caption


def test_the_mirror_can_be_deleted_and_is_updated_with_its_shard(store: Path) -> None:
    before = LatentStore(store).latents(0)[0].clone()
    shutil.rmtree(store / ".mirror")
    np.testing.assert_array_equal(LatentStore(store).latents(0)[0], before)
    last = pq.read_table(store / "songs-00001.parquet").to_pylist()[-1]
    (store / "songs-00000.parquet").write_bytes((store / "songs-00001.parquet").read_bytes())
    after = LatentStore(store)
    assert [after.song(at).caption for at in (-2 % len(after), -1 % len(after))] == [last["caption"]] * 2
    assert len(after.latents(len(after) - 2)[0]) == last["frames"]
    assert len(list((store / ".mirror").glob("*.arrow"))) == 3, "the index and both shards"


def test_a_store_can_be_pickled_to_another_process(store: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(LatentStore.song, (LatentStore(store), 2)) == LatentStore(store).song(2)


def test_other_folders_are_refused(tmp_path: Path, store: Path) -> None:
    with pytest.raises(ValueError, match="not a latent store"):
        LatentStore(tmp_path)
    for shard in store.glob("*.parquet"):
        shard.unlink()
    with pytest.raises(ValueError, match="no songs in it"):
        LatentStore(store)


def test_the_fingerprint_names_the_settings(store: Path, tmp_path: Path) -> None:
    Preprocess(shard_songs=1)(tmp_path / "songs", tmp_path / "again", Means)
    assert LatentStore(store).fingerprint == LatentStore(tmp_path / "again").fingerprint
