from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from data.folder import HOP, RATE, Dying, Means, content_hash, write_songs
from tiny import OOBLECK

from acestep.audio.audio import Audio, read_audio
from acestep.data import LatentStore, autoencoder_settings
from acestep.data.encode import TiledEncoder, convert_audio
from acestep.data.preprocess import Outcome, Preprocess
from acestep.data.store import read_rows
from acestep.files import file_hash
from acestep.models.autoencoder import Oobleck, OobleckConfig


def rows(store: Path) -> dict[str, dict[str, object]]:
    return {row["source"]: row for row in read_rows(store)}


def test_a_stored_song_is_the_autoencoders_output(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 3)
    facts = {"bpm": 100, "key": "C major", "language": "en", "truth": {"drums": "none"}}
    (songs / "song01.json").write_text(json.dumps(facts), encoding="utf-8")
    outcome = Preprocess()(songs, tmp_path / "store", Means)
    assert outcome == Outcome(stored=3, seconds_of_audio=pytest.approx(3.6))

    store = LatentStore(tmp_path / "store")
    audio = read_audio(songs / "song01.wav")
    expected = Means().encode(audio.samples[None])
    mean, scale = store.latents(1)
    np.testing.assert_array_equal(mean, expected.mean[0].detach().half().numpy())
    np.testing.assert_array_equal(scale, expected.scale[0].detach().half().numpy())
    row = rows(tmp_path / "store")["song01.wav"]
    assert (row["caption"], row["bpm"], row["key"], row["language"]) == ("caption 1", 100, "C major", "en")
    assert json.loads(row["truth"]) == {"drums": "none"}
    assert row["seconds"] == pytest.approx(1.2)
    assert row["frames"] == len(mean) == int(1.2 * RATE) // HOP


def test_workers_make_the_same_store(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 5)
    for workers in (0, 2):
        Preprocess(workers=workers, shard_songs=2)(songs, tmp_path / f"store{workers}", Means)
    assert content_hash(tmp_path / "store0") == content_hash(tmp_path / "store2")


def test_a_dead_worker_is_reported(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 1)
    with pytest.raises(ValueError, match="workers=1: a worker process died"):
        Preprocess(workers=1)(songs, tmp_path / "store", Dying)


@pytest.mark.parametrize("stop", [1, 4, 7, 10])
def test_an_interrupted_run_continues_to_the_same_store(tmp_path: Path, stop: int) -> None:
    songs = write_songs(tmp_path / "songs", 10)
    run = Preprocess(shard_songs=3)
    run(songs, tmp_path / "whole", Means)

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(songs, tmp_path / "store", Means, interrupt)
    outcome = run(songs, tmp_path / "store", Means)
    assert outcome.kept in (stop, stop + 1)  # one song is written while the next is encoded
    assert outcome.kept + outcome.stored == 10
    assert content_hash(tmp_path / "store") == content_hash(tmp_path / "whole")


def test_a_second_run_encodes_only_what_changed(tmp_path: Path) -> None:
    songs, store = write_songs(tmp_path / "songs", 4), tmp_path / "store"
    run = Preprocess(shard_songs=2)
    run(songs, store, Means)
    soundfile.write(songs / "song00.wav", np.zeros((RATE, 2)), RATE)
    soundfile.write(songs / "song01.wav", np.zeros((RATE, 2)), RATE)
    soundfile.write(songs / "song02.wav", np.zeros((RATE, 2)), RATE)
    (songs / "song03.txt").write_text("corrected", encoding="utf-8")
    (songs / "new.wav").write_bytes((songs / "song03.wav").read_bytes())
    outcome = run(songs, store, Means)
    assert (outcome.stored, outcome.kept) == (4, 1)
    found = rows(store)
    assert len(found) == 5
    assert found["song03.wav"]["caption"] == "corrected"
    assert found["song02.wav"]["frames"] == RATE // HOP
    assert found["new.wav"]["sha256"] == found["song03.wav"]["sha256"]
    assert content_hash(store) != ""


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    songs, store = write_songs(tmp_path / "songs", 3), tmp_path / "store"
    read: list[str] = []
    monkeypatch.setattr("acestep.files.SETTLED_NS", 0)
    monkeypatch.setattr("acestep.data.preprocess.file_hash", lambda path: read.append(path.name) or file_hash(path))
    for _ in range(2):
        Preprocess()(songs, store, Means)
    assert len(read) == 3
    before = (songs / "song01.wav").stat()
    changed = bytearray((songs / "song01.wav").read_bytes())
    changed[-1] ^= 1
    (songs / "song01.wav").write_bytes(changed)
    os.utime(songs / "song01.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    (songs / "song02.txt").write_text("corrected", encoding="utf-8")
    outcome = Preprocess()(songs, store, Means)
    assert read[3:] == ["song01.wav"], "same size, same time of writing, other bytes"
    assert (outcome.stored, outcome.kept) == (1, 2)
    assert rows(store)["song02.wav"]["caption"] == "corrected"


def test_a_decoder_that_is_trained_further_leaves_a_store_valid() -> None:
    autoencoder = Oobleck(OobleckConfig(**OOBLECK))
    autoencoder.init_weights(torch.Generator().manual_seed(0))
    before = autoencoder_settings(autoencoder)
    autoencoder.decoder.conv1.bias.data += 1
    assert autoencoder_settings(autoencoder) == before
    autoencoder.encoder.conv1.bias.data += 1
    assert autoencoder_settings(autoencoder) != before


def test_unusable_files_are_skipped_with_a_reason(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 1)
    (songs / "text.wav").write_text("not audio", encoding="utf-8")
    soundfile.write(songs / "empty.wav", np.zeros((0, 1)), RATE)
    soundfile.write(songs / "nan.wav", np.full((RATE, 1), np.nan), RATE, subtype="FLOAT")
    soundfile.write(songs / "sidecar.wav", np.zeros((RATE, 1)), RATE)
    (songs / "sidecar.json").write_text("{", encoding="utf-8")
    outcome = Preprocess()(songs, tmp_path / "store", Means)
    reasons = {skip.file: skip.reason for skip in outcome.skipped}
    assert outcome.stored == 1
    assert set(reasons) == {"text.wav", "empty.wav", "nan.wav", "sidecar.wav"}
    assert "not an audio file" in reasons["text.wav"]
    assert "at least one latent frame" in reasons["empty.wav"]
    assert "not numbers" in reasons["nan.wav"]
    assert "not JSON" in reasons["sidecar.wav"]
    assert str(tmp_path) not in "".join(reasons.values())


def test_latents_beyond_float16_are_skipped(tmp_path: Path) -> None:
    outcome = Preprocess()(write_songs(tmp_path / "songs", 1), tmp_path / "store", partial(Means, 1e9))
    assert "float16" in outcome.skipped[0].reason


def test_a_store_of_another_autoencoder_is_refused(tmp_path: Path) -> None:
    songs, store = write_songs(tmp_path / "songs", 1), tmp_path / "store"
    Preprocess()(songs, store, Means)
    with pytest.raises(ValueError, match=r"encoded otherwise \(weights is .*name a new folder"):
        Preprocess()(songs, store, partial(Means, 2.0))
    with pytest.raises(ValueError, match="chunk is 750, not 500"):
        Preprocess(encoder=TiledEncoder(chunk=500))(songs, store, Means)
    LatentStore(store).check(autoencoder_settings(Means()))
    with pytest.raises(ValueError, match="weights is"):
        LatentStore(store).check(autoencoder_settings(Means(2.0)))


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="workers=-1"):
        Preprocess(workers=-1)
    with pytest.raises(ValueError, match="shard_songs=0"):
        Preprocess(shard_songs=0)
    with pytest.raises(ValueError, match=r"encoder\.chunk=4"):
        TiledEncoder(chunk=4, overlap=2)


def test_a_long_song_is_encoded_in_tiles() -> None:
    audio = Audio(torch.rand(2, 101 * HOP + 7) - 0.5, RATE)
    whole = TiledEncoder()(audio, Means())
    autoencoder = Means()
    tiled = TiledEncoder(chunk=30, overlap=5)(audio, autoencoder)
    assert whole.mean.shape == (1, 101, 4)
    assert autoencoder.longest == 30
    torch.testing.assert_close(tiled.mean, whole.mean)
    torch.testing.assert_close(tiled.scale, whole.scale)


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (44_100, 2), (192_000, 6)])
def test_any_audio_is_converted_for_the_autoencoder(rate: int, channels: int) -> None:
    wave = 2.0 * torch.sin(torch.arange(rate) * 2 * torch.pi * 100 / rate)
    samples = convert_audio(Audio(wave.expand(channels, -1), rate), Means())
    assert samples.shape == (2, RATE)
    assert samples.abs().max() <= 1.0
    torch.testing.assert_close(samples[0], samples[1])
