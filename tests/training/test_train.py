"""``train.py`` from its command line to weights that the pipeline loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.jobs import Train

from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song

LORA = ("adapter=lora", "adapter.rank=2", "optimizer.lr=1e-2", "lr.warmup=0")


def test_run_folder_has_weights_samples_losses_and_record(trained: Train, tiny: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "logger=table")
    story = json.loads((folder / "run.json").read_text())
    assert {"config", "identity", "seed", "command", "git", "packages", "data"} <= story.keys()
    assert story["data"]["songs"] == 9
    assert "_target_: acestep.flow" in (folder / "config.yaml").read_text()
    losses = json.loads((folder / "validation.json").read_text())
    assert list(losses["steps"]) == ["0", "2", "4"]
    assert losses["val_loss"]["last"] == losses["steps"]["4"]["val/loss"]
    assert {path.parent.name for path in (folder / "samples").rglob("*.flac")} == {"step_000002", "step_000004"}
    assert "4,train/loss," in (folder / "metrics.csv").read_text()
    before, after = load_file(tiny / "model.safetensors"), load_file(folder / "weights" / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert next(iter(Pipeline.from_pretrained(folder).generate([Song(caption="x")]))).samples.isfinite().all()


def test_adapter_run_exports_a_peft_folder_for_the_pipeline(trained: Train, tiny: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "logger=table", *LORA)
    names = {path.name for path in (folder / "weights").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"}
    song = Song(caption="x", seed=1)
    (with_adapter,) = Pipeline.from_pretrained(folder).generate([song])
    (without,) = Pipeline.from_pretrained(tiny).generate([song])
    assert not torch.equal(with_adapter.samples, without.samples)


def test_songs_are_sampled_with_weights_of_two_dtypes(trained: Train, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "logger=table", *LORA, "adapter.base=bfloat16", "trainer.precision=bf16-mixed")
    assert {path.parent.name for path in (folder / "samples").rglob("*.flac")} == {"step_000002", "step_000004"}


def test_a_terminated_run_prints_the_command_to_resume(
    trained: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    term = "+callbacks.term={_target_: training.jobs.TermAt, step: 1}"
    folder = trained(tmp_path / "run", "logger=table", term)
    printed = capsys.readouterr().out
    assert printed.startswith("stopped after 2 steps; to resume: python train.py ")
    assert f"run.dir={folder}" in printed
    assert not (folder / "weights").exists()


def test_the_same_command_again_changes_no_weight(trained: Train, tmp_path: Path) -> None:
    first = load_file(trained(tmp_path / "run") / "weights" / "model.safetensors")
    again = load_file(trained(tmp_path / "run") / "weights" / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_a_folder_of_another_run_is_refused(trained: Train, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "logger=table")
    with pytest.raises(SystemExit, match=r"holds a run with optimizer\.lr=0\.0001, and this one has 0\.001"):
        trained(folder, "optimizer.lr=1e-3")
    with pytest.raises(SystemExit, match="already holds a run"):
        trained(folder, "resume=never")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds files but no run"):
        trained(tmp_path / "other")


def test_a_store_of_another_autoencoder_is_refused(trained: Train, store: Path, tmp_path: Path) -> None:
    copied = tmp_path / "store"
    copied.mkdir()
    for path in (path for path in store.iterdir() if path.is_file()):
        (copied / path.name).write_bytes(path.read_bytes())
    settings = json.loads((copied / "store.json").read_text())
    (copied / "store.json").write_text(json.dumps(settings | {"weights": "others"}))
    with pytest.raises(SystemExit, match="encoded otherwise"):
        trained(tmp_path / "run", f"data.path={copied}")


def test_from_scratch_the_seed_decides_the_network(trained: Train, tmp_path: Path) -> None:
    scratch = ("network=scratch", "trainer.max_steps=1", "logger=table")
    seeds = [load_file(trained(tmp_path / str(s), *scratch, f"seed={s}") / "weights/model.safetensors") for s in (0, 1)]
    frozen = "encoder.text_projector.weight"
    assert not torch.equal(seeds[0][frozen], seeds[1][frozen])
