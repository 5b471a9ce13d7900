"""Hub ids: cached checkpoints are opened without a network, others are a one-line error."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tiny import tiny_checkpoint, with_oobleck

from acestep.pipeline.pipeline import Pipeline
from acestep.verify import verify_checkpoint
from acestep.weights.hub import BUNDLE
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache in offline mode."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(cache: Path, repository: str) -> Path:
    """The snapshot folder of ``repository`` in the cache."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    return place / "snapshots" / ("0" * 40)


def test_parts_of_a_downloaded_model_are_read_from_the_bundle(cache: Path, tmp_path: Path) -> None:
    checkpoint = with_oobleck(tiny_checkpoint(tmp_path / "text"))
    folder = save_checkpoint(checkpoint, cached(cache, "ACE-Step/acestep-v15-sft"), "upstream")
    bundle = cached(cache, BUNDLE)
    bundle.mkdir(parents=True)
    for part in ("vae", "Qwen3-Embedding-0.6B"):
        shutil.move(folder / part, bundle / part)
    shutil.copytree(folder, bundle / "acestep-v15-turbo")
    for name in ("ACE-Step/acestep-v15-sft", f"{BUNDLE}/acestep-v15-turbo"):
        network = Pipeline.from_pretrained(name).network.state_dict()
        assert all(torch.equal(network[key], value) for key, value in checkpoint.network.items())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("some/where", "weights=some/where: no such folder here, and the Hugging Face Hub does not give it"),
        (BUNDLE, "holds several models; name one of its folders"),
        (f"{BUNDLE}/acestep-v15-turbo", f"weights={BUNDLE}/acestep-v15-turbo: no such folder here"),
    ],
)
def test_a_missing_download_without_a_network_is_an_error(cache: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_checkpoint(name)


def test_a_folder_missing_in_the_repository_is_an_error(cache: Path) -> None:
    cached(cache, BUNDLE).mkdir(parents=True)
    with pytest.raises(ValueError, match="on the Hugging Face Hub has no folder nothing"):
        open_checkpoint(f"{BUNDLE}/nothing")


def test_language_models_beside_the_checkpoint_are_listed(tmp_path: Path) -> None:
    checkpoint = with_oobleck(tiny_checkpoint(tmp_path / "text"))
    folder = save_checkpoint(checkpoint, tmp_path / "bundle" / "dit", "upstream")
    for name in ("acestep-5Hz-lm-1.7B", "acestep-5Hz-lm-4B"):
        (folder.parent / name).mkdir()
    (folder.parent / "acestep-5Hz-lm-1.7B" / "config.json").write_text('{"model_type": "qwen3"}')
    assert verify_checkpoint(folder).planners == ("acestep-5Hz-lm-1.7B",)
    with pytest.raises(ValueError, match="a 5 Hz language model, which plans songs; name the folder of a DiT"):
        open_checkpoint(folder.parent / "acestep-5Hz-lm-1.7B")
