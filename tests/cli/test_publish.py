"""A published folder loads as a checkpoint, has a model card, and holds no path of the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from commands import call

from acestep.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.long

Captured = pytest.CaptureFixture[str]


def test_a_published_folder_loads_and_has_a_card(small_run: Path, tmp_path: Path, capfd: Captured) -> None:
    out = tmp_path / "hub"
    assert (
        call("acestep", "publish", str(small_run), "--out", str(out), "--name", "mine", "--licence", "cc-by-4.0") == 0
    )
    assert Pipeline.from_pretrained(out).sampler == Pipeline.from_pretrained(small_run).sampler
    text = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["pipeline_tag"]) == ("cc-by-4.0", "text-to-audio")
    assert "4 to train on, 2 held out" in text
    assert "Validation loss: first" in text
    songs = list((out / "songs").glob("*.mp3"))
    assert songs
    assert all(song.name in text for song in songs)
    assert "cc-by-4.0" in (out / "LICENSE").read_text(encoding="utf-8")
    written = [path.read_text(encoding="utf-8") for path in out.rglob("*") if path.suffix in (".md", ".yaml")]
    assert not any(str(small_run.parent) in one for one in written)
    assert yaml.safe_load((out / "training_config.yaml").read_text(encoding="utf-8"))["seed"] == 0

    assert call("acestep", "publish", str(small_run), "--out", str(out)) == 1
    assert "holds files" in capfd.readouterr().err


def test_nothing_is_pushed_without_a_licence(small_run: Path, tmp_path: Path, capfd: Captured) -> None:
    assert call("acestep", "publish", str(small_run), "--out", str(tmp_path / "hub"), "--push", "nobody/nothing") == 1
    assert "--licence: not given" in capfd.readouterr().err


def test_an_unfinished_run_is_refused(small_run: Path, tmp_path: Path, capfd: Captured) -> None:
    copy = shutil.copytree(small_run, tmp_path / "run")
    status = json.loads((copy / "status.json").read_text(encoding="utf-8")) | {"state": "stopped"}
    (copy / "status.json").write_text(json.dumps(status), encoding="utf-8")
    assert call("acestep", "publish", str(copy)) == 1
    assert "has no finished weights" in capfd.readouterr().err
