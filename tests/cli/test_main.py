"""Commands of ``python -m acestep``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from acestep.__main__ import main
from acestep.cli.preprocess import SOME_SKIPPED
from acestep.data import LatentStore
from acestep.data.store import read_rows
from acestep.weights.open import open_checkpoint


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    (tmp_path / "songs").mkdir()
    soundfile.write(tmp_path / "songs" / "a.flac", np.zeros((48_000, 2)), 48_000)
    (tmp_path / "songs" / "a.txt").write_text("silence", encoding="utf-8")
    return tmp_path / "songs"


def test_preprocess_then_again(songs: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["preprocess", str(songs), str(tmp_path / "store"), "--weights", str(tiny)]
    assert main(command) == 0
    assert "1 songs stored (1 s), 0 already there, 0 skipped" in capsys.readouterr().out
    assert LatentStore(tmp_path / "store").song(0).caption == "silence"

    (songs / "b.wav").write_text("no audio", encoding="utf-8")
    assert main([*command, "--json", str(tmp_path / "counts.json")]) == SOME_SKIPPED
    assert "skipped b.wav: not an audio file" in capsys.readouterr().out
    counts = json.loads((tmp_path / "counts.json").read_text(encoding="utf-8"))
    assert (counts["stored"], counts["kept"], [skip["file"] for skip in counts["skipped"]]) == (0, 1, ["b.wav"])


def test_check_lists_all_problems_and_writes_no_store(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (songs / "b.wav").write_text("no audio", encoding="utf-8")
    (songs / "a.json").write_text('{"bpm": 5}', encoding="utf-8")
    facts = tmp_path / "facts.json"
    command = ["preprocess", str(songs), str(tmp_path / "store"), "--check", "--json", str(facts)]
    assert main(command) == SOME_SKIPPED
    table = capsys.readouterr().out
    assert "0 songs can be used, 2 cannot" in table
    assert "song.bpm=5" in table
    assert [skip["file"] for skip in json.loads(facts.read_text(encoding="utf-8"))["skipped"]] == ["a.flac", "b.wav"]
    assert not (tmp_path / "store").exists()


def test_workers_find_the_weights(songs: Path, tiny: Path, tmp_path: Path) -> None:
    assert main(["preprocess", str(songs), str(tmp_path / "store"), "--weights", str(tiny), "--workers", "1"]) == 0


def test_preprocess_reads_the_output_of_synth(tiny: Path, tmp_path: Path) -> None:
    assert main(["synth", str(tmp_path / "world"), "--songs", "2", "--seed", "3"]) == 0
    assert main(["preprocess", str(tmp_path / "world"), str(tmp_path / "store"), "--weights", str(tiny)]) == 0
    row = read_rows(tmp_path / "store")[0]
    assert row["caption"]
    assert row["bpm"]
    assert json.loads(row["truth"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preprocess", "{songs}", "{store}", "--weights", "nowhere"], "weights=nowhere"),
        (["preprocess", "{empty}", "{store}", "--weights", "{tiny}"], "no audio file in it"),
        (["preprocess", "{songs}", "{store}", "--weights", "{tiny}", "--workers", "-1"], "workers=-1"),
        (["preprocess", "{songs}", "{store}", "--weights", "{tiny}", "--device", "foo"], "device=foo: not a device"),
        (["verify", "{tiny}", "--device", "cuda:99"], "device=cuda:99: torch finds no such GPU"),
        (["synth", "{store}", "--songs", "0"], "songs=0"),
        (["foundation", "{store}", "--songs", "0"], "songs=0"),
        (["bench", "memory", "--seconds", "-5"], "seconds=-5"),
        (["bench", "memory", "--songs", "0"], "songs=0: need at least 1"),
        (["bench", "memory", "--steps", "0"], "steps=0: need at least 1"),
        (["bench", "memory", "--model", "foo"], "model=foo: not in configs/model"),
        (["bench", "memory", "--model", "micro", "--steps", "2"], "steps=2: has no effect with --model"),
        (["bench", "memory", "--experiment", "xl_lora", "--songs", "2"], "songs=2: has no effect with --experiment"),
        (["bench", "data", "--songs", "0"], "songs=0: need at least 1"),
        (["bench", "data", "--workers", "-1"], "workers=-1: need at least 0"),
    ],
)
def test_invalid_arguments_are_one_line_errors(
    songs: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"songs": songs, "store": tmp_path / "store", "empty": tmp_path / "empty", "tiny": tiny}
    assert main([argument.format(**names) for argument in arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


def test_a_folder_without_usable_songs_is_an_error(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "songs").mkdir()
    (tmp_path / "songs" / "a.wav").write_text("no audio", encoding="utf-8")
    assert main(["preprocess", str(tmp_path / "songs"), str(tmp_path / "store"), "--weights", str(tiny)]) == 1
    assert "no song could be used" in capsys.readouterr().err


def test_convert(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", str(tiny), str(tmp_path / "half"), "--dtype", "float16"]
    assert main(command) == 0
    assert open_checkpoint(tmp_path / "half").network["decoder.norm_out.weight"].dtype is torch.float16
    assert main(command) == 1
    assert "exists; name a new folder" in capsys.readouterr().err
    assert main(["convert", str(tiny), str(tmp_path / "other"), "--to", "upstream"]) == 1
    assert "only the native layout can hold" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
