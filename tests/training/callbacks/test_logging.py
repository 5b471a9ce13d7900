"""Checkpoint names, logged metrics, scores of songs, and the run card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training import jobs

from acestep.config.run import CONFIGS, build_nodes, build_values, compose_config
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.metrics import Memorisation, Metric
from acestep.evaluation.prompts import FolderPrompts
from acestep.evaluation.suite import Evaluation
from acestep.training.callbacks import ScoreSongs
from acestep.training.loggers import read_table


def test_checkpoints_are_named_by_step(run, tmp_path: Path) -> None:
    run(tmp_path, steps=4)  # validated at step 3, saved at 2 and 4
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step=4.ckpt", "last.ckpt"}
    assert torch.load(tmp_path / "checkpoints" / "step=4.ckpt", weights_only=True)["global_step"] == 4
    assert set(jobs.curve(tmp_path, "val/loss")) == {0, 3}


def test_monitor_logs_throughput_and_losses_by_noise_level(run, tmp_path: Path) -> None:
    run(tmp_path, steps=4)
    logged = {name: values for name, values in read_table(tmp_path).items() if name.startswith("train/")}
    assert {"train/songs_per_second", "train/frames_per_second", "train/tflops", "train/gradient_norm"} <= logged.keys()
    assert all(0 <= share < 1 for share in logged["train/data_wait"].values())
    cells = {name.rpartition("_t")[2] for name in logged if name.startswith("train/loss_t")}
    assert cells <= {f"{(cell + 0.5) / 10:.3f}" for cell in range(10)}
    assert len(cells) > 1
    frames, songs = (logged[f"train/{name}_per_second"] for name in ("frames", "songs"))
    assert all(10 <= frames[step] / songs[step] <= 12 for step in songs)  # the store's songs have 10 to 12 frames


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Recordings that a model could have been trained on."""
    folder, random = tmp_path / "songs", np.random.default_rng(0)
    folder.mkdir()
    for index in range(3):
        soundfile.write(folder / f"{index}.wav", 0.1 * random.normal(size=(24_000, 2)), 48_000)
        (folder / f"{index}.txt").write_text(f"song {index}", encoding="utf-8")
    return folder


def scored(songs: Path, folder: Path, every: int = 1) -> ScoreSongs:
    metrics: dict[str, Metric | None] = {"memorisation": Memorisation(embedder=MelEmbedder(), songs=str(songs))}
    prompts = FolderPrompts(path=str(songs), limit=2, seconds=0.4)
    return ScoreSongs(Evaluation(prompts=prompts, metrics=metrics, ceiling=False), str(folder / "scores"), every)


def test_score_callback_measures_memorisation(run, songs: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", steps=6, callbacks=[scored(songs, tmp_path / "run")])
    nearest = jobs.curve(tmp_path / "run", "score/memorisation.nearest")
    assert set(nearest) == {3, 6}
    assert all(-1 <= value <= 1 for value in nearest.values())
    assert set(jobs.curve(tmp_path / "run", "score/memorisation.percentile")) == {3, 6}
    scored_steps = {path.parent.name for path in (tmp_path / "run" / "scores").glob("step_*/clips")}
    assert scored_steps == {"step_000003", "step_000006"}


def test_score_interval_is_kept_over_a_resume(run, songs: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", steps=3, callbacks=[scored(songs, tmp_path / "run", every=2)])
    assert not (tmp_path / "run" / "scores").exists()
    callback = scored(songs, tmp_path / "run", every=2)
    callback.load_state_dict({"validations": 1})
    assert callback.state_dict() == {"validations": 1}
    with pytest.raises(ValueError, match=r"callbacks\.score\.every=0"):
        scored(songs, tmp_path, every=0)


def test_run_card_contents(trained, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "logger=table", "callbacks.monitor.every=1", "objective.dropout.lyrics=0.5")
    card = (folder / "card.md").read_text()
    rows = dict(re.findall(r"^\| (.+) \| (.+) \|$", card, re.MULTILINE))
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert int(rows["trained parameters"].replace(",", "")) == sum(value.numel() for value in state.values())
    assert rows["steps"] == "4"
    assert rows["steps skipped, gradient not finite"] == "0"
    assert "songs 9" in rows["data"]
    assert rows["command"].startswith("`train.py model=tiny")
    dropped = read_table(folder)["train/dropped/lyrics"].values()
    assert rows["conditions dropped: lyrics"] == f"{sum(dropped) / len(dropped):.1%}"
    losses = json.loads((folder / "validation.json").read_text())["steps"]
    assert f"| 4 | {losses['4']['val/loss']:.4f} |" in card
    assert (folder / "validation.png").stat().st_size > 5000
    links = [line.partition("](")[2].rstrip(")") for line in card.splitlines() if line.startswith("- [")]
    assert links
    assert all((folder / link).is_file() for link in links)


@pytest.mark.slow
def test_wandb_offline_run_has_curves_and_songs(trained, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb", reason="an extra")
    wandb.setup()  # as after another run in the same process: the environment is read once
    folder = trained(tmp_path / "run", "logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=2")
    (run_file,) = (folder / "wandb").glob("offline-run-*/run-run.wandb")
    assert b"train/loss" in run_file.read_bytes()
    assert b"val/loss_t" in run_file.read_bytes()
    assert list((folder / "wandb").rglob("*.wav"))


@pytest.mark.parametrize("callbacks", sorted(path.stem for path in (CONFIGS / "callbacks").glob("*.yaml")))
def test_every_callbacks_option_builds(callbacks: str, tmp_path: Path) -> None:
    given = ["weights=micro", "data.path=store", f"run.dir={tmp_path}", f"callbacks={callbacks}"]
    if callbacks == "memorisation":
        with pytest.raises(ValueError, match=r"memorisation\.songs: not given"):
            build_nodes(compose_config("train", given))
        given += [f"callbacks.score.evaluation.metrics.memorisation.songs={tmp_path}"]
    built = build_values(compose_config("train", given).callbacks)
    assert any(isinstance(callback, ModelCheckpoint) for callback in built)
    assert any(isinstance(callback, ScoreSongs) for callback in built) == (callbacks in ("scores", "memorisation"))
