"""A tiny store and a tiny run, built from objects as ``train.py`` builds them from a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from acestep.adapters import LoRA
from acestep.data.store import FORMAT, autoencoder_settings, write_settings, write_shard
from acestep.flow import ConditionDropout, FlowMatching
from acestep.pipeline import Pipeline
from acestep.training.data import DataConfig, LatentData
from acestep.training.dit import DiTModule, Optimization
from acestep.training.ema import EMA
from acestep.training.fit import Start, fit, load_pipeline, select_trained
from acestep.training.loggers import TableLogger
from acestep.training.optim import AdamW, WarmupCosine
from acestep.training.trainer import TrainerConfig

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
    write_shard(folder / "songs-00000.parquet", rows, settings)
    return folder


Run = Callable[..., DiTModule]


@pytest.fixture
def run(tiny: Path, store: Path) -> Run:
    """Trains in a folder, from its newest checkpoint where it has one; returns the module afterwards."""

    def _run(
        folder: Path,
        *,
        steps: int = 6,
        adapter: LoRA | None = None,
        trainable: str = r"^decoder\.|^encoder\.|^null_condition_emb$",
        callbacks: Sequence[Callback] = (),
        ema: bool = False,
        accumulate: int = 1,
        **data: int,
    ) -> DiTModule:
        torch.manual_seed(torch.seed())  # nothing may hang on the ambient seed
        pipeline = load_pipeline(str(tiny), Pipeline.from_pretrained(tiny).network.config, Start.pretrained, seed=1)
        select_trained(pipeline.network, trainable, adapter, seed=1)
        objective = FlowMatching(dropout=ConditionDropout(rate=0.3))
        optimization = Optimization(optimizer=AdamW(lr=1e-2), lr=WarmupCosine(warmup=2))
        module = DiTModule(pipeline, objective, optimization, seed=1, validation_times=2)
        config = DataConfig(**{"path": str(store), "batch_size": 2, "held_out": 2} | data)
        periodic = ModelCheckpoint(dirpath=folder / "checkpoints", filename="{step}", every_n_train_steps=2)
        trainer = TrainerConfig(accelerator="cpu", max_steps=steps, accumulate=accumulate, validate_every=3)(
            [periodic, *([EMA(decay=0.9)] if ema else []), *callbacks], [TableLogger(str(folder))]
        )
        found = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        fit(
            trainer,
            module,
            LatentData(config, seed=1),
            found[-1] if found else None,
            folder / "checkpoints" / "last.ckpt",
        )
        return module

    return _run
