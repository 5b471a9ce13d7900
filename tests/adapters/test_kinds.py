"""Every kind of adapter on every base format: identity at the start, training, saving, merging, export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from adapters.blocks import Block, generator, moved
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from tiny import NETWORK
from torch import Tensor

from acestep.adapters import (
    OFT,
    Adapter,
    AdapterDtype,
    AdapterLayout,
    BaseFormat,
    LoHa,
    LoKr,
    LoRA,
    export_adapter,
    load_adapter,
    merge_adapter,
    quantize_base,
    save_adapter,
)
from acestep.adapters.export import adapter_layers
from acestep.adapters.read import linear_layers, read_adapter
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.types import Conditions

TARGETS = ("q_proj", "o_proj")


@dataclass(frozen=True, kw_only=True)
class UserLoRA(Adapter):
    """A kind outside the package: a PEFT config is all that it defines."""

    rank: int = 4

    def config(self, targets: Sequence[str]) -> LoraConfig:
        return LoraConfig(r=self.rank, target_modules=list(targets))


KINDS = {
    "lora": LoRA(rank=4, targets=TARGETS),
    "rslora": LoRA(rank=4, alpha=4, targets=TARGETS, rslora=True),
    "dora": LoRA(rank=4, targets=TARGETS, dora=True),
    "lokr": LoKr(rank=4, targets=TARGETS),
    "lokr of four": LoKr(rank=2, targets=TARGETS, decompose_both=True),
    "loha": LoHa(rank=4, targets=TARGETS),
    "oft": OFT(block=16, targets=TARGETS),
    "user-defined": UserLoRA(targets=TARGETS),
}
IMPOSSIBLE = {("dora", BaseFormat.nf4), ("oft", BaseFormat.int8)}
GRID = [(kind, base) for kind in KINDS for base in BaseFormat if (kind, base) not in IMPOSSIBLE]


@pytest.mark.parametrize(("kind", "base"), GRID, ids=lambda value: getattr(value, "value", value))
def test_every_kind_starts_as_identity_and_trains_on_every_base(
    block: Block, x: Tensor, kind: str, base: BaseFormat
) -> None:
    plain = copy.deepcopy(block)
    quantize_base(plain, base)
    replace(KINDS[kind], base=base)(block, generator())
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    wanted, losses = torch.randn(5, 64, generator=generator()), []
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for step in range(10):
        with torch.autocast("cpu", torch.bfloat16, enabled=base is BaseFormat.bfloat16):
            made = block(x)
            if step == 0:
                torch.testing.assert_close(
                    made.float(), plain(x).float(), atol=0.01 if base is BaseFormat.bfloat16 else 1e-6, rtol=0
                )
        loss = (made.float() - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_save_load_and_merge_keep_the_output(block: Block, x: Tensor, kind: str, tmp_path: Path) -> None:
    fresh, names = copy.deepcopy(block), [name for name, _ in block.named_parameters()]
    before = block(x)
    made = moved(block, KINDS[kind])(x)
    assert not torch.allclose(made, before, atol=1e-3)
    save_adapter(block, tmp_path / "adapter", "micro")
    assert "micro" in (tmp_path / "adapter" / "README.md").read_text()
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x), made)
    merge_adapter(fresh)
    torch.testing.assert_close(fresh(x), made, atol=1e-4, rtol=0)
    assert [name for name, _ in fresh.named_parameters()] == names


def tiny_network() -> AceStep:
    network = AceStep(AceStepConfig.from_dict(NETWORK))
    network.init_weights(generator())
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator())
    return network.eval()


@pytest.fixture
def arguments() -> tuple[Tensor, Tensor, Conditions]:
    x_t, context = (torch.randn(2, 8, channels, generator=generator()) for channels in (64, 128))
    states = torch.randn(2, 5, NETWORK["encoder_hidden_size"], generator=generator())
    conditions = Conditions(states, torch.ones(2, 5).bool(), context, torch.ones(2, 8).bool())
    return x_t, torch.tensor([0.3, 0.8]), conditions


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, AdapterLayout.comfyui) for kind in ("lora", "rslora", "dora", "lokr")]
    + [(kind, AdapterLayout.diffusers) for kind in ("lora", "rslora")],
)
@torch.no_grad()
def test_export_and_read_keep_the_output(kind: str, layout: AdapterLayout, arguments, tmp_path: Path) -> None:
    adapter = replace(KINDS[kind], targets=("attention",), rank=2)
    decoder, fresh = moved(tiny_network().decoder, adapter), tiny_network().decoder
    made = decoder(*arguments)
    assert not torch.allclose(made, fresh(*arguments), atol=1e-3)
    found = read_adapter(export_adapter(decoder, tmp_path / "lora.safetensors", layout), linear_layers(fresh))
    inject_adapter_in_model(found.config, fresh, "default")
    set_peft_model_state_dict(fresh, dict(found.tensors), adapter_name="default")
    torch.testing.assert_close(fresh(*arguments), made, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dora", "lokr", "loha", "oft"])
def test_unsupported_layouts_are_errors(block: Block, kind: str, tmp_path: Path) -> None:
    KINDS[kind](block, generator())
    with pytest.raises(ValueError, match="export: diffusers reads plain LoRA alone"):
        export_adapter(block, tmp_path / "lora.safetensors", AdapterLayout.diffusers)


def test_merging_into_quantized_weights_is_an_error(block: Block) -> None:
    replace(KINDS["lora"], base=BaseFormat.int8)(block, generator())
    with pytest.raises(ValueError, match="quantized"):
        merge_adapter(block)


def test_rank_pattern_sets_the_rank_of_a_layer(block: Block) -> None:
    LoRA(rank=4, targets=TARGETS, rank_pattern={"o_proj": 2})(block, generator())
    assert {name: layer.r["default"] for name, layer in adapter_layers(block)} == {"q_proj": 4, "o_proj": 2}


def test_bfloat16_adapter_trains(block: Block, x: Tensor) -> None:
    replace(KINDS["lora"], base=BaseFormat.bfloat16, dtype=AdapterDtype.bfloat16)(block, generator())
    trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.bfloat16}
    optimizer, losses = torch.optim.AdamW(trained, lr=1e-2, fused=True), []
    for _ in range(10):
        loss = (block(x.bfloat16()).float() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(("targets", "rank", "millions"), [(("attention",), 64, 83.9), (("attention", "mlp"), 64, 159)])
def test_a_lora_of_xl_has_the_size_of_the_reference(targets: tuple[str, ...], rank: int, millions: float) -> None:
    with torch.device("meta"):
        decoder = AceStep(AceStepConfig()).decoder
        LoRA(rank=rank, targets=targets)(decoder, generator())
    trained = sum(parameter.numel() for parameter in decoder.parameters() if parameter.requires_grad)
    assert trained / 1e6 == pytest.approx(millions, abs=0.5 if millions > 100 else 0.05)


def test_impossible_settings_are_errors() -> None:
    for build, message in (
        (lambda: OFT(block=1), "adapter.block=1"),
        (lambda: OFT(base=BaseFormat.int8), "adapter.base=int8"),
        (lambda: LoRA(dora=True, base=BaseFormat.nf4), "adapter.dora=true"),
        (lambda: LoKr(factor=0), "adapter.factor=0"),
        (lambda: LoHa(rank_pattern={"x": 0}), "adapter.rank=0"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
