"""A reproduced run has the same bits; changes of seed, data, packages and code are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import call
from safetensors.torch import load_file, save_file

from acestep.runs.record import hash_files, read_record

pytestmark = pytest.mark.long

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A run that a test may change."""
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.mark.slow
def test_the_same_run_gives_the_same_bits(small_run: Path, capfd: Captured) -> None:
    assert call("train", f"reproduce={small_run}") == 0
    assert "reproduced bit for bit" in capfd.readouterr().err
    reproduction = json.loads((small_run.with_name("run-again") / "reproduction.json").read_text(encoding="utf-8"))
    assert reproduction["same"]
    assert reproduction["compared"]["tensors"] == _tensors(small_run / "weights")
    assert reproduction["compared"]["metrics"] >= 2
    assert not [line for line in reproduction["changed"] if not line.startswith("code")]


def _tensors(folder: Path) -> int:
    return sum(len(load_file(path)) for path in folder.rglob("*.safetensors"))


@pytest.mark.slow
def test_changes_are_named(copy: Path, tmp_path: Path, capfd: Captured) -> None:
    store = shutil.copytree(copy_store(copy), tmp_path / "store")
    record = read_record(copy)
    record["packages"]["numpy"] = "1.0"
    (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
    hashes = json.loads((copy / "data_files.json").read_text(encoding="utf-8"))
    name = next(iter(hashes))
    (copy / "data_files.json").write_text(json.dumps({**hashes, name: "0" * 64}), encoding="utf-8")

    assert call("train", f"reproduce={copy}", "seed=1", f"data.path={store}") == 1
    output = capfd.readouterr().err
    assert "changed: seed: was 0, is 1" in output
    assert "changed: package numpy: was 1.0, is " in output
    assert f"changed: data: 1 of 1 files changed, were added or removed: {name}" in output
    assert "config: data.path was" in output
    assert "NOT reproduced" in output


def copy_store(run: Path) -> Path:
    return Path(read_record(run)["config"]["data"]["path"])


def test_verify_names_changes_of_result_data_and_tree(copy: Path, capfd: Captured) -> None:
    record = read_record(copy) | {"git": {"commit": "abc", "dirty": True}}
    (copy / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert call("acestep", "verify", str(copy)) == 0
    output = capfd.readouterr().out
    assert "started from a changed tree: abc" in output
    assert "as it was: result, data, weights, packages" in output

    weights = copy / "weights" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    assert call("acestep", "verify", str(copy)) == 1
    assert "result: weights/model.safetensors is not what the run wrote" in capfd.readouterr().out


def test_a_data_file_is_hashed_again_when_it_changes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    before = hash_files(tmp_path, keep=True)
    (tmp_path / "a.txt").write_text("two", encoding="utf-8")
    after = hash_files(tmp_path, keep=True)
    assert before.keys() == after.keys() == {"a.txt"}
    assert before != after == hash_files(tmp_path)


def test_a_folder_without_a_run_gives_a_one_line_error(tmp_path: Path, capfd: Captured) -> None:
    assert call("train", f"reproduce={tmp_path}") == 1
    assert "holds no run" in capfd.readouterr().err


@pytest.mark.slow
def test_a_reproduced_evaluation_has_the_same_songs(tiny: Path, tmp_path: Path, capfd: Captured) -> None:
    metrics = [f"metrics.{name}=null" for name in ("clap", "fad", "kad", "coverage", "diversity", "adherence")]
    signal = "+metrics.signal={_target_: acestep.evaluation.metrics.SignalHealth}"
    few = [f"weights={tiny}", "eval.prompts.songs=2", "schedule.steps=1", *metrics, signal, "eval.ceiling=false"]
    assert call("evaluate", *few, f"out={tmp_path / 'one'}") == 0
    assert call("evaluate", f"reproduce={tmp_path / 'one'}") == 0
    assert "reproduced bit for bit" in capfd.readouterr().err
    assert json.loads((tmp_path / "one-again" / "reproduction.json").read_text())["compared"]["songs"] == 2
