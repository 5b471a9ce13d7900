"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from tiny import NETWORK, write_tiny

from acestep.audio.audio import Audio
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint

# A first call compiles and imports, and a shared machine pauses: time is no property of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests run where they are asked for, and are named with the reason where not."""
    if not os.environ.get("ACESTEP_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: make test-all runs it"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint folder of random weights, with every structure of the real one. Not to be written to."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def coded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with 64 codes: a vocabulary of 64,000 takes seconds to write down."""
    config = {**NETWORK, "fsq_input_levels": [4, 4, 4]}
    network = AceStep(AceStepConfig.from_dict(config))
    network.init_weights(torch.Generator().manual_seed(0))
    checkpoint = replace(open_checkpoint(tiny), network_config=config, network=network.state_dict())
    return save_checkpoint(checkpoint, tmp_path_factory.mktemp("coded") / "coded")


@pytest.fixture(scope="session")
def small_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two steps by ``train.py``, with a song; its store is beside it. Not to be written to."""
    from commands import SMALL, call, small_store  # here, since it loads Lightning

    folder = tmp_path_factory.mktemp("small")
    store = small_store(folder, tiny)
    assert call("train", *SMALL, f"weights={tiny}", f"data.path={store}", f"run.dir={folder / 'run'}") == 0
    song = Audio(0.1 * torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0)), 48_000)
    song.save(folder / "run" / "samples" / "step_000002" / "00.flac")
    return folder / "run"
