"""The feature cache, and extraction on several threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import FeatureExtractor, Features
from acestep.evaluation.embedders.cache import FeatureCache, map_songs
from acestep.synth.world import SAMPLE_RATE


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class SlowPower(FeatureExtractor):
    """Mean power, slow enough for threads to overlap."""

    name, fingerprint, thread_safe = "slow", "0" * 12, True

    def extract(self, audio: Audio) -> Features:
        time.sleep(0.01)
        return {"power": audio.samples.square().mean()[None]}


def test_the_same_recording_under_several_names_is_extracted_by_several_threads(
    two_threads: None, tmp_path: Path
) -> None:
    samples = 0.1 * torch.randn(2, SAMPLE_RATE // 10, generator=torch.Generator().manual_seed(0))
    files = [Audio(samples, SAMPLE_RATE).save(tmp_path / f"{index}.flac") for index in range(8)]
    store = FeatureCache(tmp_path / "heard")
    features = map_songs(partial(store.features, SlowPower()), files)
    assert len({float(one["power"]) for one in features}) == 1
    assert len([path for path in (tmp_path / "heard").rglob("*") if path.is_file()]) == 1
    sequential = map_songs(partial(FeatureCache(tmp_path / "again").features, SlowPower()), files, threaded=False)
    assert sequential == features


def test_an_error_waits_for_the_songs_beside_it(two_threads: None) -> None:
    ended = []

    def work(index: int) -> None:
        if index == 0:
            raise ValueError("a bad song")
        time.sleep(0.05)
        ended.append(index)

    with pytest.raises(ValueError, match="a bad song"):
        map_songs(work, range(6))
    assert sorted(ended) == [1, 2, 3, 4, 5]
    assert torch.get_num_threads() == 2
