"""The other tasks through ``train.py``: they run, resume bit-identically, and their results load."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from tiny import OOBLECK

import train
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.grammar import Rules
from acestep.planner.model import LanguageModel
from acestep.planner.plan import Planner, PlannerConfig
from acestep.songs import Song
from acestep.training.module import TrainingModule

pytestmark = pytest.mark.slow

Train = Callable[..., Path]

SMALL = ["hidden_size=16", "intermediate_size=24", "num_hidden_layers=1", "num_attention_heads=2"]
SMALL += ["num_key_value_heads=1", "head_dim=8", "vocabulary=300"]
PLAY = ["callbacks.sample.songs=1"]
PLANNER = ["task=planner", *PLAY, "language=scratch", "trainable=.", *(f"language.{size}" for size in SMALL)]
TOKENIZER = ["task=tokenizer", "callbacks=no_samples", r"trainable='^(de)?tokenizer\.'"]
JUDGE = "task.discriminator={channels:4,sizes:[32,16]}"
SIZES = ",".join(f"{name}:{value}" for name, value in OOBLECK.items())
AUDIO = ["task=autoencoder", "callbacks=no_samples", "data=audio", "data.frames=8", "trainer.gradient_clip=null", JUDGE]
AUTOENCODER = [*AUDIO, "network=scratch", "trainable=.", f"task.oobleck={{{SIZES}}}".replace("'", "")]


@pytest.fixture
def trained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs ``train.py`` for four steps, with what is given beside; returns the run folder."""

    def _trained(folder: Path, data: Path, *arguments: str) -> Path:
        base = ["model=tiny", f"weights={tiny}", f"data.path={data}", "data.held_out=2"]
        base += ["data.batch_size=2", "trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.validate_every=2"]
        base += ["callbacks.monitor.every=1", "callbacks.progress=null", "logger=table", f"run.dir={folder}"]
        base += [
            "optimizer.lr=1e-2",
            "callbacks.checkpoint.every_n_train_steps=2",
            "callbacks.checkpoint.save_top_k=-1",
        ]
        monkeypatch.setattr(sys, "argv", ["train.py", *base, *arguments])
        GlobalHydra.instance().clear()
        train.train()
        return folder

    return _trained


def losses(folder: Path) -> dict[str, float]:
    return json.loads((folder / "validation.json").read_text())["steps"]["4"]


class InterruptedRunError(Exception):
    """What a kill is to a test."""


def interrupt(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Path]) -> None:
    """``run``, killed between its third step and its fourth; the last checkpoint is of the second."""

    def killed(module: TrainingModule, batch: Any, index: int) -> None:
        if module.global_step == 3:
            raise InterruptedRunError

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_batch_start", killed)
        with pytest.raises(InterruptedRunError):
            run()


def test_planner_trains_from_scratch_and_plans(trained: Train, store: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", store, *PLANNER, "task.example_mix.captioning=0.3")
    final = losses(folder)
    assert {"val/loss", "val/loss_codes", "val/loss_caption", "val/code_perplexity"} <= final.keys()
    assert final["val/code_perplexity"] == pytest.approx(np.exp(final["val/loss_codes"]), rel=1e-3)
    assert "train/loss_codes" in (folder / "metrics.csv").read_text()
    songs = {path.parent.name: soundfile.info(path) for path in (folder / "samples").rglob("*.flac")}
    assert songs.keys() == {"step_000002", "step_000004"}
    assert all(song.frames / song.samplerate == pytest.approx(0.44, abs=0.05) for song in songs.values())
    model = LanguageModel.from_folder(folder)
    config = PlannerConfig(path=str(folder), rules=Rules(seconds=(1, 2), caption_tokens=5))
    (plan,) = Planner(model, config).plan([Song(caption="song 1", seed=3)])
    assert len(plan.codes) == 5 * plan.song.seconds


@pytest.mark.long
def test_planner_adapter_names_its_base(trained: Train, store: Path, tmp_path: Path) -> None:
    base = trained(tmp_path / "base", store, *PLANNER) / "weights"
    start = ["task=planner", *PLAY, "language=pretrained", f"language.path={base}"]
    folder = trained(tmp_path / "lora", store, *start, "adapter=lora", "adapter.rank=2")
    assert (folder / "weights" / "adapter_model.safetensors").is_file()
    whole, adapted = LanguageModel.from_folder(base), LanguageModel.from_folder(folder)
    ids = torch.tensor([[5, 6, 7]])
    assert not torch.equal(adapted.network(ids).logits, whole.network(ids).logits)


@pytest.mark.long
def test_codes_are_cached(trained: Train, store: Path, tmp_path: Path) -> None:
    trained(tmp_path / "one", store, *PLANNER)
    (cache,) = (store / ".codes").glob("*.npz")
    before = cache.stat().st_mtime_ns
    trained(tmp_path / "two", store, *PLANNER)
    assert cache.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "task", [pytest.param(PLANNER, marks=pytest.mark.long, id="planner"), pytest.param(TOKENIZER, id="tokenizer")]
)
def test_resumed_run_equals_uninterrupted_run(
    trained: Train, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: list[str]
) -> None:
    whole = load_file(trained(tmp_path / "whole", store, *task) / "weights" / "model.safetensors")
    interrupt(monkeypatch, lambda: trained(tmp_path / "broken", store, *task))
    again = load_file(trained(tmp_path / "broken", store, *task) / "weights" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_only_the_tokenizer_trains_and_code_usage_is_logged(
    trained: Train, tiny: Path, store: Path, tmp_path: Path
) -> None:
    folder = trained(tmp_path / "run", store, *TOKENIZER)
    before, after = load_file(tiny / "model.safetensors"), load_file(folder / "weights" / "model.safetensors")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"tokenizer", "detokenizer"}
    first = json.loads((folder / "validation.json").read_text())["val_loss"]["first"]
    final = losses(folder)
    assert final["val/loss"] < first
    assert 0 < final["val/code_share"] <= 1
    assert final["val/code_perplexity"] >= 1
    assert final["val/explained_variance"] < 1


def test_autoencoder_and_discriminator_alternate(trained: Train, sounds: Path, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", sounds, *AUTOENCODER)
    rows = (folder / "metrics.csv").read_text()
    assert all(f"train/loss_{name}," in rows for name in ("judge", "kl", "stft", "adversarial", "features"))
    assert {"val/si_sdr_db", "val/mel_distance", "val/width_error_db", "val/latent_std"} <= losses(folder).keys()
    pipeline = Pipeline.from_pretrained(folder)
    assert type(pipeline.autoencoder).__name__ == "Oobleck"
    assert next(iter(pipeline.generate([Song(caption="x", seconds=0.4)]))).samples.isfinite().all()


def test_decoder_trains_alone_and_resumes(
    trained: Train, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = trained(tmp_path / "base", sounds, *AUTOENCODER)
    tune = [*AUDIO, f"weights={base}", "callbacks.ema={_target_:acestep.training.callbacks.EMA,decay:0.5}"]
    folder = trained(tmp_path / "run", sounds, *tune)
    before, after = (load_file(f / "weights/autoencoder/model.safetensors") for f in (base, folder))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"decoder"}
    interrupt(monkeypatch, lambda: trained(tmp_path / "broken", sounds, *tune))
    again = load_file(trained(tmp_path / "broken", sounds, *tune) / "weights/autoencoder/model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trainer.accumulate=2", "trainer.accumulate=2: task=autoencoder steps after every batch"),
        ("trainer.gradient_clip=1", "trainer.gradient_clip=1: task=autoencoder clips both its networks itself"),
        ("trainer.strategy=fsdp2", "trainer.strategy=fsdp2: this task does not shard its parameters; use ddp"),
        (
            "callbacks.sample={_target_:acestep.training.callbacks.SampleSongs,folder:x}",
            "callbacks.sample: this task makes no songs",
        ),
    ],
)
def test_unsupported_autoencoder_settings_are_refused(
    trained: Train, sounds: Path, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        trained(tmp_path / "run", sounds, *AUTOENCODER, setting)


def test_unusable_data_is_refused(trained: Train, sounds: Path, store: Path, language: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="data: this task trains on latents; use data=latents"):
        trained(tmp_path / "run", sounds, *TOKENIZER, "data=audio")
    (tmp_path / "songs").mkdir()
    with pytest.raises(SystemExit, match=r"data\.path=.*songs: no audio file in it"):
        trained(tmp_path / "run", tmp_path / "songs", *AUTOENCODER)
    for name in ("a.wav", "b.wav", "c.wav"):
        soundfile.write(tmp_path / "songs" / name, np.zeros((7, 2)), 200)
    for workers in (0, 1):
        with pytest.raises(SystemExit, match=r"^error: data\.path: .*\.wav is shorter than a latent frame; take it"):
            trained(tmp_path / "run", tmp_path / "songs", *AUTOENCODER, f"data.workers={workers}", "data.held_out=0")
    with pytest.raises(
        SystemExit, match=r"has tokens for 64 codes, and the tokenizer of weights=.* has 64000; start from"
    ):
        trained(tmp_path / "run", store, "task=planner", *PLAY, "language=pretrained", f"language.path={language}")
