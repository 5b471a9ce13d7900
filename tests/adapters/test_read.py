"""Adapters with other trainers' names have the effect of their formulas; others are errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.adapters.adapter_set import AdapterSet
from acestep.adapters.read import read_adapter
from acestep.songs import AdapterUse

NAMES = ("q_proj", "o_proj")
IN, OUT, RANK, ALPHA = 12, 20, 3, 6.0


def network(seed: int = 0) -> nn.Module:
    """A module with the names and shapes of a layer's attention."""
    generator = torch.Generator().manual_seed(seed)
    attention = nn.Module()
    for name, sizes in zip(NAMES, ((IN, OUT), (OUT, IN)), strict=True):
        setattr(attention, name, nn.Linear(*sizes, bias=False))
        getattr(attention, name).weight.data.normal_(generator=generator)
    layer, root = nn.Module(), nn.Module()
    layer.self_attn = attention
    root.layers = nn.ModuleList([layer])
    root.scale_shift_table = nn.Parameter(torch.zeros(1))
    return root


def halves(seed: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """``A`` and ``B`` of both layers."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"q_proj": (IN, OUT), "o_proj": (OUT, IN)}
    return {
        name: (torch.randn(RANK, i, generator=generator), torch.randn(o, RANK, generator=generator))
        for name, (i, o) in sizes.items()
    }


def named(
    pattern: str, down: str, up: str, alpha: str | None = "{}.alpha", names: tuple[str, ...] = NAMES
) -> dict[str, Tensor]:
    tensors = {}
    for (a, b), name in zip(halves().values(), names, strict=True):
        module = pattern.format(name)
        tensors |= {f"{module}.{down}": a, f"{module}.{up}": b}
        if alpha:
            tensors[alpha.format(module)] = torch.tensor(ALPHA)
    return tensors


LAYOUTS: dict[str, tuple[dict[str, Tensor], dict[str, object] | None]] = {
    "peft": (
        named("base_model.model.layers.0.self_attn.{}", "lora_A.weight", "lora_B.weight", None),
        {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(NAMES)},
    ),
    "old peft": (
        named("base_model.model.layers.0.self_attn.{}", "lora_A.default.weight", "lora_B.default.weight", None),
        {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "alpha_pattern": {"q_proj": ALPHA, "o_proj": ALPHA}},
    ),
    "comfy": (named("diffusion_model.decoder.layers.0.self_attn.{}", "lora_down.weight", "lora_up.weight"), None),
    "comfy native": (named("base_model.model.layers.0.self_attn.{}", "lora_down.weight", "lora_up.weight"), None),
    "diffusers": (
        named("transformer.layers.0.self_attn.{}", "lora_A.weight", "lora_B.weight", names=("to_q", "to_out.0")),
        None,
    ),
    "kohya": (named("lora_unet_layers_0_self_attn_{}", "lora_down.weight", "lora_up.weight"), None),
    "bare": (named("layers.0.self_attn.{}", "lora.down.weight", "lora.up.weight"), None),
}


def write(folder: Path, tensors: dict[str, Tensor], settings: dict[str, object] | None = None) -> str:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    if settings:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def outputs(module: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    attention = module.layers[0].self_attn
    return [
        getattr(attention, name)(torch.randn(4, size, generator=generator))
        for name, size in zip(NAMES, (IN, OUT), strict=True)
    ]


def changed(delta: Callable[[str, Tensor], Tensor]) -> list[Tensor]:
    module = network()
    for name in NAMES:
        weight = getattr(module.layers[0].self_attn, name).weight
        weight.data = delta(name, weight.data)
    return outputs(module)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_of_every_layout_has_the_same_effect(tmp_path: Path, layout: str) -> None:
    tensors, settings = LAYOUTS[layout]
    module = network()
    state = torch.get_rng_state()
    with AdapterSet(module).using([AdapterUse(path=write(tmp_path / "a", tensors, settings), scale=0.5)]):
        found = outputs(module)
    assert torch.equal(torch.get_rng_state(), state)
    expected = changed(lambda name, weight: weight + 0.5 * ALPHA / RANK * halves()[name][1] @ halves()[name][0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs(module), outputs(network()))


def test_dora_scales_to_its_magnitudes(tmp_path: Path) -> None:
    tensors = named("layers.0.self_attn.{}", "lora_down.weight", "lora_up.weight")
    sizes = {name: torch.rand(b.shape[0]) + 0.5 for name, (_, b) in halves().items()}
    tensors |= {f"layers.0.self_attn.{name}.dora_scale": size[:, None] for name, size in sizes.items()}
    module = network()
    with AdapterSet(module).using([AdapterUse(path=write(tmp_path / "a", tensors))]):
        found = outputs(module)

    def delta(name: str, weight: Tensor) -> Tensor:
        moved = weight + ALPHA / RANK * halves()[name][1] @ halves()[name][0]
        return sizes[name][:, None] * moved / moved.norm(dim=1, keepdim=True)

    torch.testing.assert_close(found, changed(delta), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_factored", [True, False])
def test_lokr_adds_the_kronecker_product(tmp_path: Path, is_factored: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    # What LyCORIS makes of 20 x 12 with factor -1: 4 x 5 and 3 x 4; a second factor is whole from half its size on.
    sizes, rank = {"q_proj": ((4, 3), (5, 4)), "o_proj": ((3, 4), (4, 5))}, 1
    factors, tensors = {}, {}
    for name, (first, second) in sizes.items():
        w1 = torch.randn(first, generator=generator)
        a, b = torch.randn(second[0], rank, generator=generator), torch.randn(rank, second[1], generator=generator)
        module = f"lycoris_layers_0_self_attn_{name}"
        tensors |= {f"{module}.lokr_w1": w1, f"{module}.alpha": torch.tensor(2.0 * rank)}
        tensors |= {f"{module}.lokr_w2_a": a, f"{module}.lokr_w2_b": b} if is_factored else {f"{module}.lokr_w2": a @ b}
        factors[name] = (2.0 if is_factored else 1.0) * torch.kron(w1, a @ b)
    module = network()
    lora = write(tmp_path / "lora", LAYOUTS["comfy"][0])
    both = [AdapterUse(path=write(tmp_path / "a", tensors)), AdapterUse(path=lora, scale=0.1)]
    adapter_set = AdapterSet(module)
    with adapter_set.using(both[:1]):
        torch.testing.assert_close(
            outputs(module), changed(lambda n, weight: weight + factors[n]), atol=1e-4, rtol=1e-4
        )
    with adapter_set.using(both):
        mixed = outputs(module)
    adapter_set.merge(both)
    torch.testing.assert_close(outputs(module), mixed, atol=1e-4, rtol=1e-4)
    assert type(module.layers[0].self_attn.q_proj) is nn.Linear


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, IN)}, "which is no linear layer"),
        ({"layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, IN)}, "only one half"),
        ({"layers.0.self_attn.q_proj.hada_w1_a": torch.ones(2, IN)}, "hada_w1_a is no tensor of a LoRA"),
        ({"layers.0.self_attn.q_proj.diff": torch.ones(OUT, IN)}, "diff is no tensor"),
        ({"layers.0.self_attn.q_proj.lokr_t2": torch.ones(2, IN)}, "lokr_t2 is no tensor"),
        ({"layers.0.self_attn.q_proj.lokr_w1": torch.ones(2, 2)}, "lacks a factor"),
        ({"weights": torch.ones(2, IN)}, "weights is no tensor"),
        (
            {f"layers.0.self_attn.q_proj.lora_{half}.weight": torch.ones(7, 7) for half in "AB"},
            "7 x 7 in the adapter, 20 x 12 in the network",
        ),
        (
            {f"layers.0.self_attn.q_proj.lora_{half}.weight": torch.full((7, 7), torch.nan) for half in "AB"},
            "not finite",
        ),
    ],
)
def test_unsupported_tensors_are_errors(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    module = network()
    with pytest.raises(ValueError, match=message):
        AdapterSet(module).load(write(tmp_path / "a", tensors))
    torch.testing.assert_close(outputs(module), outputs(network()))


def test_files_that_are_no_adapters_are_errors(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"\x80\x04")
    (tmp_path / "a.safetensors").write_bytes(b"broken")
    (tmp_path / "none").mkdir()
    for name, message in (
        ("a.pt", "pickled"),
        ("a.safetensors", "not a whole safetensors"),
        ("none", "no adapter there"),
    ):
        with pytest.raises(ValueError, match=message):
            read_adapter(tmp_path / name, {})
