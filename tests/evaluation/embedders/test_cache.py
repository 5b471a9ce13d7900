"""Songs that several threads listen to at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.cache import HearingStore, each_song
from acestep.synth.spectra import SAMPLE_RATE


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Slow:
    """Hears how loud a song is, and takes its time, so that threads meet."""

    name, fingerprint, pure = "slow", "0" * 12, True

    def hear(self, audio: Audio) -> dict[str, Tensor]:
        time.sleep(0.01)
        return {"power": audio.samples.square().mean()[None]}


def test_the_same_recording_under_several_names_is_heard_by_several_threads(two_threads: None, tmp_path: Path) -> None:
    samples = 0.1 * torch.randn(2, SAMPLE_RATE // 10, generator=torch.Generator().manual_seed(0))
    files = [Audio(samples, SAMPLE_RATE).save(tmp_path / f"{index}.flac") for index in range(8)]
    store = HearingStore(tmp_path / "heard")
    heard = each_song(partial(store.hear, Slow()), files)
    assert len({float(one["power"]) for one in heard}) == 1
    assert len([path for path in (tmp_path / "heard").rglob("*") if path.is_file()]) == 1
    alone = each_song(partial(HearingStore(tmp_path / "again").hear, Slow()), files, at_once=False)
    assert alone == heard


def test_an_error_waits_for_the_songs_beside_it(two_threads: None) -> None:
    ended = []

    def work(index: int) -> None:
        if index == 0:
            raise ValueError("a bad song")
        time.sleep(0.05)
        ended.append(index)

    with pytest.raises(ValueError, match="a bad song"):
        each_song(work, range(6))
    assert sorted(ended) == [1, 2, 3, 4, 5]
    assert torch.get_num_threads() == 2
