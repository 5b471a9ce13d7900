"""LoRA: identity at the start, round trips, and folders that PEFT loads."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from adapters.blocks import Block, generator, moved
from peft import PeftModel
from torch import nn

from acestep.adapters import LoRA, adapter_base, load_adapter, save_adapter
from acestep.pipeline.pipeline import Pipeline

VARIANTS = [LoRA(rank=2, targets=("q_proj", "o_proj"), **kind) for kind in ({}, {"rslora": True}, {"dora": True})]


@pytest.mark.parametrize("adapter", VARIANTS)
def test_initial_adapter_is_identity_and_only_it_trains(block: Block, x: torch.Tensor, adapter: LoRA) -> None:
    before = block(x)
    adapter(block, generator())
    torch.testing.assert_close(block(x), before)
    names = {name for name, parameter in block.named_parameters() if parameter.requires_grad}
    assert names
    assert all("lora_" in name for name in names)


def test_initialisation_depends_on_the_generator_only(block: Block) -> None:
    other = copy.deepcopy(block)
    state = torch.random.get_rng_state()
    LoRA(rank=2, targets=("q_proj",))(block, generator())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    LoRA(rank=2, targets=("q_proj",))(other, generator())
    for one, two in zip(block.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_peft_loads_the_folder(block: Block, x: torch.Tensor, tmp_path: Path) -> None:
    fresh = copy.deepcopy(block)
    moved(block, VARIANTS[0])
    save_adapter(block, tmp_path / "adapter", "micro")
    torch.testing.assert_close(PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))(x), block(x))


def test_the_base_is_a_name_or_a_path_relative_to_the_adapter(block: Block, tmp_path: Path) -> None:
    LoRA(rank=2, targets=("q_proj",))(block, generator())
    (tmp_path / "base").mkdir()
    assert adapter_base(save_adapter(block, tmp_path / "one", "micro")) == "micro"
    assert adapter_base(save_adapter(block, tmp_path / "run" / "two", str(tmp_path / "base"))) == str(tmp_path / "base")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert adapter_base(tmp_path / "moved" / "two") == str(tmp_path / "base")


def test_circular_bases_are_an_error(block: Block, tmp_path: Path) -> None:
    LoRA(rank=2, targets=("q_proj",))(block, generator())
    folders = [tmp_path / "one", tmp_path / "other" / "weights"]
    for folder in folders:
        save_adapter(block, folder, "micro")
    for folder, base in zip(folders, ("../other", "../../one"), strict=True):
        (folder / "base.json").write_text(json.dumps({"weights": base}))
    with pytest.raises(ValueError, match=r"base\.json: leads back to itself"):
        Pipeline.from_pretrained(folders[0])


def test_an_adapter_for_another_size_is_an_error(block: Block, tmp_path: Path) -> None:
    LoRA(rank=2, targets=("q_proj",))(block, generator())
    save_adapter(block, tmp_path / "adapter", "micro")
    narrow = nn.Module()
    narrow.q_proj = nn.Linear(4, 8)
    with pytest.raises(ValueError, match="belongs to weights of another size"):
        load_adapter(narrow, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("base.json", "{}", "base.json: need"),
        ("base.json", "{", "base.json: not JSON"),
        ("base.json", '{"weights": "."}', "base.json: leads back to itself"),
        ("adapter_config.json", '{"peft_type": "LORA"}', "adapter_config.json: has no target_modules"),
        ("adapter_model.safetensors", "cut", "adapter_model.safetensors: not a whole safetensors file"),
    ],
)
def test_broken_files_are_errors(block: Block, tmp_path: Path, name: str, text: str, message: str) -> None:
    LoRA(rank=2, targets=("q_proj",))(block, generator())
    folder = save_adapter(block, tmp_path / "adapter", "micro")
    usual = (folder / "README.md").stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {usual}
    (folder / name).write_text(text)
    read = adapter_base if name == "base.json" else partial(load_adapter, Block())
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("alpha", float("nan")), ("dropout", 1.0), ("targets", ()), ("targets", ("nothing",))],
)
def test_invalid_decoding_settings_are_refused(block: Block, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"adapter.{field}"):
        LoRA(**{field: value})(block, generator())
