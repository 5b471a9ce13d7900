"""Broken checkpoints raise an error that names the tensor or file; no pickled code is executed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acestep.pipeline.pipeline import Pipeline
from acestep.weights.open import find_folder, folder_hash, open_checkpoint
from acestep.weights.upstream import read_silence

NAME = "decoder.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


def _edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_a_renamed_tensor(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors.update({"decoder.odd": tensors.pop(NAME)}))
    with pytest.raises(ValueError, match=rf"lacks {NAME} \[24, 16\]; has unknown decoder.odd"):
        Pipeline.from_pretrained(folder)


def test_a_wrong_shape(folder: Path) -> None:
    _edit(folder, lambda tensors: tensors.update({NAME: torch.zeros(3, 16)}))
    with pytest.raises(
        ValueError, match=rf"{NAME} has shape \[3, 16\], this network needs \[24, 16\]; .* another size"
    ):
        Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(folder: Path, value: float) -> None:
    _edit(folder, lambda tensors: tensors[NAME][3].fill_(value))
    with pytest.raises(ValueError, match=f"{NAME} holds numbers that are not finite"):
        Pipeline.from_pretrained(folder)


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors: not a whole safetensors file"):
        Pipeline.from_pretrained(folder)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code(tmp_path: Path) -> None:
    trace, bomb = tmp_path / "ran", tmp_path / "silence_latent.pt"
    for write in (lambda: torch.save(_Bomb(trace), bomb), lambda: bomb.write_bytes(pickle.dumps(_Bomb(trace)))):
        write()
        with pytest.raises(ValueError, match=r"silence_latent.pt: not a plain tensor file, so it was not opened"):
            read_silence(bomb)
        assert not trace.exists()


def test_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has neither model.safetensors nor .* \(pickled weights are not read\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize("silence", [torch.zeros(64, 3), [torch.zeros(1)], torch.zeros(2, 64, 3)])
def test_silence_of_a_wrong_shape(silence: Any, tmp_path: Path) -> None:
    torch.save(silence, tmp_path / "silence_latent.pt")
    with pytest.raises(ValueError, match=r"need one tensor \[1, channels, frames\]"):
        read_silence(tmp_path / "silence_latent.pt")
    with pytest.raises(ValueError, match=r"nothing.pt: no such file"):
        read_silence(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{", "config.json: not JSON"),
        ("[1]", "config.json: need a JSON object, not list"),
        ('{"format": "acestep-native"}', "its config.json or silence_latent.safetensors has no 'network'"),
        ('{"model_type": "llama"}', "no checkpoint of a known layout there"),
    ],
)
def test_a_config_of_another_model(folder: Path, config: str, says: str) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=says):
        open_checkpoint(folder)


def test_a_network_config_with_an_unknown_key(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["network"]["hiden_size"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"weights=.*copy: its config.json describes no network: hiden_size=3"):
        Pipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"autoencoder": "oobleck"},
        {"autoencoder": {"class": "spectral", "config": {"colour": 1}}},
        {"lengths": {"most": 3}},
        {"lengths": {"min_seconds": "short"}},
        {"network": None},
        {"sampler": []},
        {"sampler": {"schedule": {"class": "Shifted", "stesp": 3}}},
        {"sampler": {"schedule": {"class": "Shifted", "steps": "three"}}},
        {"sampler": {"colour": {"class": "Shifted"}}},
        {"sampler": {"schedule": "Shifted"}},
    ],
    ids=str,
)
def test_errors_in_the_config_name_the_file(folder: Path, change: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=r"copy.*config\.json"):
        Pipeline.from_pretrained(folder)


def test_an_adapter_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="an adapter, not a checkpoint; merge it first"):
        open_checkpoint(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights=.*nothing: no such folder"):
        find_folder(tmp_path / "nothing")


def test_the_folder_hash_depends_on_every_byte_and_name(folder: Path) -> None:
    before = folder_hash(folder)
    assert folder_hash(folder) == before
    (folder / "model.safetensors").rename(folder / "model2.safetensors")
    renamed = folder_hash(folder)
    assert renamed != before
    with (folder / "model2.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert folder_hash(folder) != renamed
