"""A tiny store and a tiny run, built from objects as ``train.py`` builds them from a config."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra.core.global_hydra import GlobalHydra
from training import jobs
from training.jobs import Train

import train
from acestep.data.store import FORMAT, autoencoder_settings, shard_table, write_settings, write_shard
from acestep.pipeline.pipeline import Pipeline
from acestep.training.dit import DiTModule

SONGS = 11


@pytest.fixture(scope="session")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random latents of songs of unequal length."""
    folder = tmp_path_factory.mktemp("store")
    settings = {"format": FORMAT, **autoencoder_settings(Pipeline.from_pretrained(tiny).autoencoder)}
    random = np.random.default_rng(0)
    rows = []
    for index in range(SONGS):
        frames = 10 + index % 3
        row = dict.fromkeys(("bpm", "key", "time_signature", "truth"))
        row |= {"source": f"{index}.flac", "sha256": str(index), "seconds": frames / 25, "frames": frames}
        row |= {"caption": f"song {index}", "lyrics": "[verse]\nla", "language": "en"}
        row |= {"mean": random.normal(size=(frames, 64)), "scale": np.full((frames, 64), 0.1)}
        rows.append(row)
    write_settings(folder, settings)
    write_shard(folder / "songs-00000.parquet", shard_table(rows, settings))
    return folder


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noises of unequal length and rate."""
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    for index in range(SONGS):
        rate = 200 if index % 2 else 400
        soundfile.write(folder / f"{index}.wav", 0.1 * random.normal(size=(rate + 37 * index, 2)), rate)
    return folder


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planner of random weights, for an adapter to be trained on."""
    model = jobs.SMALL_LANGUAGE(["song 1", "[verse]\nla"], 64, torch.Generator().manual_seed(0))
    return model.save(tmp_path_factory.mktemp("language") / "lm")


@pytest.fixture(scope="session")
def trainings(coded: Path, tiny: Path, store: Path, sounds: Path, language: Path) -> dict[str, tuple]:
    """Every training but the DiT's by its name: where it reads from, and its settings."""
    return {
        "planner": ((coded, store), {"task": jobs.PLANNER}),
        "adapted planner": ((coded, store), {"task": jobs.adapted(language)}),
        "tokenizer": ((tiny, store), {"task": jobs.TOKENIZER}),
        "autoencoder": ((tiny, sounds), {"task": jobs.AUTOENCODER, "trainer": {"gradient_clip": None}}),
    }


Run = Callable[..., DiTModule]


@pytest.fixture
def run(tiny: Path, store: Path) -> Run:
    """Trains in a folder, from its newest checkpoint where it has one; returns the module afterwards."""

    def _run(folder: Path, **settings: Any) -> DiTModule:
        return jobs.train(folder, (tiny, store), **settings)

    return _run


@pytest.fixture
def trained(tiny: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs ``train.py`` for four steps, with what is given beside; returns the run folder."""

    def _trained(folder: Path, *arguments: str) -> Path:
        base = ["model=tiny", f"weights={tiny}", f"data.path={store}", "data.held_out=2", "data.batch_size=2"]
        base += [
            "trainer.accelerator=cpu",
            "trainer.max_steps=4",
            "trainer.validate_every=2",
            "callbacks.sample.songs=1",
        ]
        base += ["callbacks.monitor.every=2", "callbacks.progress=null", f"run.dir={folder}"]
        monkeypatch.setattr(sys, "argv", ["train.py", *base, *arguments])
        GlobalHydra.instance().clear()
        train.train()
        return folder

    return _trained
