"""Published-layout folders of the golden data load strictly and without pickled code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import load_model, root
from safetensors.torch import load_file

from acestep.pipeline.build import build_network
from acestep.weights.open import open_checkpoint


def _folders() -> list[Any]:
    found = [
        path.parent for path in sorted(root().glob("*/config.json")) if "model_type" in json.loads(path.read_text())
    ]
    return [pytest.param(path, id=path.name) for path in found]


@pytest.mark.parametrize("folder", _folders())
def test_a_published_folder_loads(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    network = build_network(checkpoint, "cpu", torch.float32)
    for name, value in load_model(folder.name).state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    if (folder / "silence_latent.safetensors").is_file():
        assert torch.equal(checkpoint.silence, load_file(folder / "silence_latent.safetensors")["silence_latent"])
