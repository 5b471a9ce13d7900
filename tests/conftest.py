"""Fixtures shared by the tests of several packages."""

from __future__ import annotations

import getpass
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from tiny import NETWORK, write_tiny

from acestep.adapters import LoRA, save_adapter
from acestep.audio.audio import Audio
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.pipeline import Pipeline
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint

# No deadline: a first call compiles and imports, and a shared machine may be slow.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Inductor's cache does not separate instruction sets (torch 2.11): kernels of one crash or fail to compile under
# another. Assigned, since importing torch sets the variable already.
INSTRUCTIONS = torch.backends.cpu.get_cpu_capability().lower()
os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}_{INSTRUCTIONS}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``long`` unless ``ACESTEP_LONG`` is set."""
    if not os.environ.get("ACESTEP_LONG"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: make test-all runs it"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint folder of random weights, with all modules of the release. Read-only."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def coded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with 64 codes, since a tokenizer with 64,000 code tokens takes seconds to write."""
    config = {**NETWORK, "fsq_input_levels": [4, 4, 4]}
    network = AceStep(AceStepConfig.from_dict(config))
    network.init_weights(torch.Generator().manual_seed(0))
    checkpoint = replace(open_checkpoint(tiny), network_config=config, network=network.state_dict())
    return save_checkpoint(checkpoint, tmp_path_factory.mktemp("coded") / "coded")


@pytest.fixture(scope="session")
def small_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two training steps, with a song; its latent store is beside it. Read-only."""
    from commands import SMALL, call, small_store  # imported here, since it loads Lightning

    folder = tmp_path_factory.mktemp("small")
    store = small_store(folder, tiny)
    assert call("train", *SMALL, f"weights={tiny}", f"data.path={store}", f"run.dir={folder / 'run'}") == 0
    song = Audio(0.1 * torch.randn(2, 48_000, generator=torch.Generator().manual_seed(0)), 48_000)
    song.save(folder / "run" / "samples" / "step_000002" / "00.flac")
    return folder / "run"


@pytest.fixture(scope="session")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two LoRAs of random weights for the tiny checkpoint."""
    paths = []
    for seed in (1, 2):
        trained = Pipeline.from_pretrained(tiny)
        generator = torch.Generator().manual_seed(seed)
        LoRA(rank=2)(trained.network.decoder, generator)
        for name, parameter in trained.network.decoder.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=generator)
        folder = tmp_path_factory.mktemp("adapters") / str(seed)
        paths.append(str(save_adapter(trained.network.decoder, folder, str(tiny))))
    return paths
