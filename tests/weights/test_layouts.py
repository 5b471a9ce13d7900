"""Conversion between layouts keeps every tensor bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint, with_oobleck
from torch import Tensor

from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.diffusers import COMPONENTS, from_diffusers, to_diffusers
from acestep.weights.open import folder_hash, open_checkpoint
from acestep.weights.save import WRITERS, save_checkpoint

SONG = Song(caption="piano", seconds=0.4, seed=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return with_oobleck(tiny_checkpoint(tmp_path_factory.mktemp("text") / "encoder"))


def _same(first: Mapping[str, Tensor] | None, second: Mapping[str, Tensor] | None) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("way", [[layout] for layout in WRITERS] + [["upstream", "native", "diffusers", "upstream"]])
def test_tensors_are_equal_after_conversion(checkpoint: Checkpoint, way: list[str], tmp_path: Path) -> None:
    there = checkpoint
    for step, layout in enumerate(way):
        there = open_checkpoint(save_checkpoint(there, tmp_path / str(step), layout))
    assert _same(checkpoint.network, there.network)
    assert _same(checkpoint.autoencoder, there.autoencoder)
    assert torch.equal(checkpoint.silence, there.silence)
    assert there.text_encoder.is_dir()
    assert {**there.network_config, "padding": "masked"}.items() >= checkpoint.network_config.items()


def test_files_are_equal_after_a_round_trip(checkpoint: Checkpoint, tmp_path: Path) -> None:
    start = save_checkpoint(checkpoint, tmp_path / "start", "upstream")
    folder = start
    for layout in ("native", "diffusers", "upstream"):
        folder = save_checkpoint(open_checkpoint(folder), tmp_path / layout, layout)
    assert folder_hash(folder) == folder_hash(start)


def test_every_layout_generates_the_same_song(checkpoint: Checkpoint, tmp_path: Path) -> None:
    songs = []
    for layout in WRITERS:
        pipeline = Pipeline.from_pretrained(save_checkpoint(checkpoint, tmp_path / layout, layout))
        (latents,) = pipeline.latents([SONG])
        songs.append(latents)
        assert pipeline.decode(latents[None]).shape == (1, 2, 80)
    assert torch.equal(songs[0], songs[2])


def test_a_diffusers_folder_without_our_extra_file_is_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(checkpoint, tmp_path / "theirs", "diffusers")
    (folder / "acestep.json").unlink()
    there = open_checkpoint(folder)
    assert _same(checkpoint.network, there.network)
    ours = {
        key: value for key, value in checkpoint.network_config.items() if key not in ("padding", "timbre_fix_frame")
    }
    assert there.network_config.items() >= ours.items()
    assert torch.equal(there.silence[:, :40], checkpoint.silence)
    assert there.silence.shape[1] == 15_000


def test_sharded_files_are_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(checkpoint, tmp_path / "sharded", "upstream")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{index % 2 + 1:05}-of-00002.safetensors" for index, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert _same(checkpoint.network, open_checkpoint(folder).network)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors is missing, though .*index.json lists it"):
        open_checkpoint(folder)


def test_parts_beside_the_folder_are_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(checkpoint, tmp_path / "hub" / "acestep-v15", "upstream")
    for part in ("vae", "Qwen3-Embedding-0.6B"):
        shutil.move(folder / part, folder.parent / part)
    assert Pipeline.from_pretrained(folder).resolve(Song(seconds=10.0)).seconds == 10.0
    shutil.rmtree(folder.parent / "vae")
    with pytest.raises(ValueError, match=r"comes without its autoencoder; put vae/ of ACE-Step/Ace-Step1.5"):
        Pipeline.from_pretrained(folder)
    shutil.rmtree(folder.parent / "Qwen3-Embedding-0.6B")
    assert open_checkpoint(folder).text_encoder is None


def test_newer_weight_norm_names_are_read(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(checkpoint, tmp_path / "newer", "upstream")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for name, value in load_file(path).items()
    }
    save_file(newer, path)
    assert _same(checkpoint.autoencoder, open_checkpoint(folder).autoencoder)


def test_a_spectral_autoencoder_needs_the_native_layout(tmp_path: Path) -> None:
    spectral = tiny_checkpoint(tmp_path / "text")
    for layout in ("upstream", "diffusers"):
        with pytest.raises(ValueError, match="of class spectral, which only the native layout can hold"):
            save_checkpoint(spectral, tmp_path / layout, layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no checkpoint"):
        save_checkpoint(spectral, tmp_path / "mine")
    with pytest.raises(ValueError, match=r"to=zip: .* use native, upstream, diffusers"):
        save_checkpoint(spectral, tmp_path / "zip", "zip")


def test_names_map_both_ways(checkpoint: Checkpoint) -> None:
    components = set()
    for name in checkpoint.network:
        component, theirs = to_diffusers(name)
        components.add(component)
        assert from_diffusers(component, theirs) == name
    assert components == set(COMPONENTS.values())


def test_a_shipped_checkpoint_is_named_by_its_short_name():
    assert Pipeline.from_pretrained("micro").checkpoint.name == "micro"
