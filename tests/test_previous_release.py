"""Run folders, sidecars and evaluations written by the previous release still open, and its key names still work.

``fixtures/previous_release`` was written by commit b072fca: a tiny checkpoint, a latent store, a LoRA run of two steps,
a sweep of two runs, an evaluation without its audio, and a song's sidecar.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from commands import call
from safetensors.torch import load_file

from acestep.evaluation.results import read_results

FIXTURE = Path(__file__).parent / "fixtures" / "previous_release"
RECORDED_OVERRIDES = yaml.safe_load((FIXTURE / "lora" / "overrides.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_adapter(folder: Path) -> None:
    """The adapter in ``folder`` equals the recorded one up to rounding, which another processor may do differently."""
    expected = load_file(FIXTURE / "lora" / "weights" / "adapter_model.safetensors")
    found = load_file(folder / "weights" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3)


def test_a_sidecar_generates_its_song_again(previous: Path) -> None:
    assert call("infer", "from=own.json", "out=again.flac") == 0
    recorded, again = (json.loads((previous / name).read_text())["settings"] for name in ("own.json", "again.json"))
    assert again["song"] == recorded["song"]
    for group in ("schedule", "solver", "guidance", "correction", "clamp", "smoothing"):
        assert {**again[group], "_target_": ""} == {**recorded[group], "_target_": ""}


def test_old_options_work_and_warn(previous: Path, capfd: pytest.CaptureFixture[str]) -> None:
    groups = ("guidance", "clamp", "smoothing", "correction", "schedule", "solver")
    words = [f"{group}=own" for group in groups]
    assert call("infer", "weights=tiny", "song.caption=a song", "song.seconds=2", *words, "out=song.flac") == 0
    messages = capfd.readouterr().err
    for group in groups:
        assert f"{group}=own" in messages
        assert f"{group}=checkpoint" in messages


def test_a_training_resumes_from_its_checkpoint(previous: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = previous / "lora"
    shutil.rmtree(run / "weights")
    (run / "checkpoints" / "step=2.ckpt").unlink()
    (run / "checkpoints" / "step=1.ckpt").rename(run / "checkpoints" / "last.ckpt")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    assert call("train", *RECORDED_OVERRIDES) == 0
    assert "data.metadata_dropout" in capfd.readouterr().err
    assert_same_adapter(run)


def test_a_training_is_reproduced_from_its_record(previous: Path) -> None:
    call("train", "reproduce=lora")  # exit status 1 on another processor, whose bits differ
    assert_same_adapter(previous / "lora-again")


def test_a_sweep_finds_its_finished_runs(previous: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (previous / "ranks").iterdir())
    other = ("adapter.rank", "data.untold", "callbacks.watch", "run.dir")
    words = [word for word in RECORDED_OVERRIDES if not word.startswith(other)]
    assert call("train", "--multirun", *words, "adapter.rank=2,4", "hydra.sweep.dir=ranks") == 0
    assert sorted(path.name for path in (previous / "ranks").iterdir() if path.is_dir()) == before


def test_an_evaluation_opens(previous: Path) -> None:
    assert read_results(previous / "eval").headlines
    assert call("acestep", "report", "eval", "--out", "page") == 0
    assert call("acestep", "report", "ranks") == 0
