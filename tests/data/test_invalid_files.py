"""Every file of a folder, valid or not, is stored or listed as skipped, and nothing crashes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data.folder import Means

from acestep.data import LatentStore
from acestep.data.preprocess import Preprocess
from acestep.data.report import dry_run, findings, write_data_report
from acestep.data.store import read_rows


def _noise(seconds: float, rate: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, (int(seconds * rate), channels))


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    folder = tmp_path / "songs"
    (folder / "deep" / "er").mkdir(parents=True)
    kinds = {
        "good.flac": (2, 44_100, 2),
        "low.wav": (2, 8_000, 1),
        "high.wav": (1, 192_000, 2),
        "surround.flac": (1, 48_000, 6),
        "odd.wav": (1, 44_101, 2),
        "small.mp3": (2, 44_100, 2),
        "deep/er/vorbis.ogg": (2, 44_100, 1),
        "long.flac": (20 * 60, 8_000, 1),
        "ünïcode 名前.flac": (1, 44_100, 2),
        "none.wav": (0, 8_000, 1),
    }
    for name, (seconds, rate, channels) in kinds.items():
        soundfile.write(folder / name, _noise(seconds, rate, channels), rate)
    whole = (folder / "good.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "text.wav").write_text("not audio", encoding="utf-8")
    (folder / "empty.mp3").touch()
    (folder / "film.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(64))
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "gone.wav").symlink_to("nowhere.wav")
    (folder / "deep" / "back").symlink_to(folder)
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    soundfile.write(folder / "nan.wav", np.full((800, 1), np.nan), 8_000, subtype="FLOAT")
    return folder


USABLE = {
    "good.flac", "low.wav", "high.wav", "surround.flac", "odd.wav", "small.mp3", "deep/er/vorbis.ogg", "long.flac",
    "ünïcode 名前.flac",
}  # fmt: skip
REASONS = {
    "none.wav": "too short",
    "truncated.flac": "truncated|not an audio file",
    "text.wav": "not an audio file",
    "empty.mp3": "not an audio file",
    "film.m4a": "not an audio file",
    "loop.wav": "symbolic links",
    "gone.wav": "No such file",
    "pipe.wav": "not a regular file",
    "nan.wav": "not numbers",
}


def test_every_file_is_stored_or_skipped_with_its_reason(songs: Path, tmp_path: Path) -> None:
    outcome = Preprocess()(songs, tmp_path / "store", Means)
    assert {row["source"] for row in read_rows(tmp_path / "store")} == USABLE
    assert outcome.stored == len(USABLE)
    _assert_reasons({skip.file: skip.reason for skip in outcome.skipped}, tmp_path)
    store = LatentStore(tmp_path / "store")
    seconds = dict(zip(store.column("source"), store.column("seconds"), strict=True))
    assert seconds["long.flac"] == 1200
    assert seconds["good.flac"] == pytest.approx(2, abs=0.01)
    assert len(store.latents(store.column("source").index("long.flac"))[0]) == 1200 * 25
    page = write_data_report(tmp_path / "report.html", read_rows(tmp_path / "store"), outcome.skipped).read_text(
        "utf-8"
    )
    assert all(name in page for name in REASONS)
    assert "http" not in page


def test_a_dry_run_finds_the_same_and_writes_nothing(songs: Path, tmp_path: Path) -> None:
    rows, skipped = dry_run(songs, Preprocess(), lambda done, total: None)
    assert {row["source"] for row in rows} == USABLE
    _assert_reasons({skip.file: skip.reason for skip in skipped}, tmp_path)
    seen = {(finding.file, finding.what.split(":")[0]) for finding in findings(rows)}
    assert any(file == "long.flac" and what.startswith("lasts 1200 s") for file, what in seen)
    assert {path.name for path in tmp_path.iterdir()} == {"songs"}


def _assert_reasons(found: dict[str, str], folder: Path) -> None:
    assert found.keys() == REASONS.keys()
    for name, reason in found.items():
        assert any(part in reason for part in REASONS[name].split("|")), (name, reason)
        assert str(folder) not in reason
        assert "\n" not in reason


def test_findings_name_duplicates_clipping_silence_and_too_many_lyrics(tmp_path: Path) -> None:
    folder = tmp_path / "songs"
    folder.mkdir()
    at = np.arange(8 * 16_000) / 16_000
    rng = np.random.default_rng(1)
    melody = np.concatenate([np.sin(2 * np.pi * f * at[:16_000]) for f in (110, 440, 330, 880, 220, 1500, 660, 90)])
    melody = 0.3 * melody + 0.02 * rng.normal(size=len(at))
    soundfile.write(folder / "one.wav", melody, 16_000)
    soundfile.write(folder / "bytes.wav", melody, 16_000)
    soundfile.write(folder / "copy.mp3", 0.6 * melody, 16_000)
    soundfile.write(folder / "other.wav", 0.3 * rng.normal(size=len(at)), 16_000)
    soundfile.write(folder / "loud.wav", np.clip(5 * np.sin(2 * np.pi * 99 * at), -1, 1)[: 6 * 16_000], 16_000)
    soundfile.write(folder / "quiet.wav", np.zeros(3 * 16_000), 16_000)
    (folder / "other.lyrics.txt").write_text("la " * 400, encoding="utf-8")
    rows, skipped = dry_run(folder, Preprocess(), lambda done, total: None)
    found = {finding.file: finding.what for finding in findings(rows) if "no lyrics" not in finding.what}
    assert not skipped
    assert "clipped" in found["loud.wav"]
    assert found["quiet.wav"] == "silent"
    assert "more than can be sung" in found["other.wav"]
    assert {name for name, what in found.items() if "same file" in what} <= {"one.wav", "bytes.wav"}
    assert any("sounds like" in what for what in found.values())
    assert len(found) == 5
