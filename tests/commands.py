"""The programs and ``python -m acestep``, run in this process, and a small latent store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

import evaluate
import infer
import train
from acestep.__main__ import main
from acestep.data.preprocess import Preprocess
from acestep.pipeline.build import load_autoencoder
from acestep.synth import write_world

PROGRAMS = {"train": train.train, "evaluate": evaluate.evaluate, "infer": infer.infer}
SMALL = (
    "model=tiny",
    "data.held_out=2",
    "data.batch_size=2",
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.validate_every=2",
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.sample=null",
    "callbacks.progress=null",
    "logger=table",
    "lr.warmup=1",
)


def call(program: str, *words: str) -> int:
    """Exit status of ``python PROGRAM.py WORDS``, or of ``python -m acestep WORDS``; output goes to the streams."""
    if program == "acestep":
        return main(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{program}.py", *words])
        try:
            PROGRAMS[program]()
        except SystemExit as ended:
            if isinstance(ended.code, str):
                sys.stderr.write(f"{ended.code}\n")
                return 1
            return ended.code or 0
    return 0


def small_store(folder: Path, weights: Path, songs: int = 6) -> Path:
    """Songs of the micro world, encoded by the autoencoder of ``weights``."""
    source = write_world(folder / "songs", songs, 3)
    Preprocess()(source, folder / "store", partial(load_autoencoder, str(weights)))
    return folder / "store"
