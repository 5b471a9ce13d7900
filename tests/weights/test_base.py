"""A native checkpoint with a base: only differing tensors are stored, and the checkpoint read is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_checkpoint

from acestep.pipeline.build import weights_fingerprint
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint


@pytest.fixture
def tuned(tmp_path: Path) -> Checkpoint:
    """A checkpoint with one tensor that differs from ``tmp_path/base``."""
    base = tiny_checkpoint(tmp_path / "encoder")
    save_checkpoint(base, tmp_path / "base")
    name = next(name for name in base.network if name.startswith("decoder."))
    return replace(base, network={**base.network, name: base.network[name] + 1})


def test_only_differing_tensors_are_written_and_all_are_read(tuned: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(tuned, tmp_path / "tuned", base=tmp_path / "base")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    again, whole = open_checkpoint(folder), open_checkpoint(save_checkpoint(tuned, tmp_path / "whole"))
    assert set(again.network) == set(whole.network)
    assert all(torch.equal(again.network[name], whole.network[name]) for name in whole.network)
    assert torch.equal(again.silence, whole.silence)
    assert again.text_encoder == tmp_path / "base" / "text_encoder"


def test_a_changed_base_changes_the_fingerprint(tuned: Checkpoint, tmp_path: Path) -> None:
    folder = save_checkpoint(tuned, tmp_path / "tuned", base=tmp_path / "base")
    before = weights_fingerprint(folder)
    save_checkpoint(replace(tuned, lengths=replace(tuned.lengths, max_seconds=300.0)), tmp_path / "base")
    assert weights_fingerprint(folder) != before


def test_a_base_that_does_not_match_is_refused(tuned: Checkpoint, tmp_path: Path) -> None:
    other = replace(tuned, silence=tuned.silence + 1)
    with pytest.raises(ValueError, match="silence latent differs"):
        save_checkpoint(other, tmp_path / "other", base=tmp_path / "base")
    with pytest.raises(ValueError, match="only the native layout"):
        save_checkpoint(tuned, tmp_path / "other", "upstream", base=tmp_path / "base")
    with pytest.raises(ValueError, match="put that native checkpoint"):
        save_checkpoint(tuned, tmp_path / "deeper" / "tuned", base=tmp_path / "base")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "missing", "tuned"])
def test_the_base_must_be_a_folder_beside_the_checkpoint(tuned: Checkpoint, tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tuned, tmp_path / "tuned", base=tmp_path / "base")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "base": name}), encoding="utf-8")
    with pytest.raises(ValueError, match="names the base"):
        open_checkpoint(folder)
