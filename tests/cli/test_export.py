"""``merge`` and ``export``: results are equivalent to the adapter, also in diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from acestep.__main__ import main
from acestep.adapters import OFT, Adapter, BaseFormat, LoHa, LoKr, LoRA, save_adapter
from acestep.models.acestep import AceStep
from acestep.pipeline.build import build_network
from acestep.types import Conditions
from acestep.weights.open import open_checkpoint

PATTERN = {r"layers\.0\.self_attn\.q_proj": 3}
LORA = LoRA(rank=2, targets=("attention", "mlp"), rank_pattern=PATTERN, alpha_pattern=PATTERN)
KINDS = {
    "lora": LORA,
    "dora": LoRA(rank=2, dora=True),
    "lokr": LoKr(rank=2),
    "loha": LoHa(rank=2),
    "oft": OFT(block=2),
    "lora on int8": LoRA(rank=2, base=BaseFormat.int8),
}


def network_in(folder: Path) -> AceStep:
    return build_network(open_checkpoint(folder), "cpu", torch.float32)


def arguments(network: AceStep) -> tuple[Tensor, Tensor, Conditions]:
    generator = torch.Generator().manual_seed(3)
    x_t, context = (torch.randn(2, 8, channels, generator=generator) for channels in (64, 128))
    states = torch.randn(2, 5, network.config.encoder.hidden_size, generator=generator)
    return x_t, torch.tensor([0.3, 0.8]), Conditions(states, torch.ones(2, 5).bool(), context, torch.ones(2, 8).bool())


def adapted(tiny: Path, folder: Path, adapter: Adapter) -> AceStep:
    """The tiny network with ``adapter``, none of its numbers at its start, which is also saved in ``folder``."""
    generator, network = torch.Generator().manual_seed(0), network_in(tiny)
    network.requires_grad_(False)
    adapter(network.decoder, generator)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_adapter(network.decoder, folder, str(tiny))
    return network


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_merged_checkpoint_is_equivalent_to_the_adapter(
    tiny: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    carried, target = adapted(tiny, tmp_path / "adapter", KINDS[kind]), tmp_path / "whole"
    assert main(["merge", str(tmp_path / "adapter"), str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    whole, plain = network_in(target), network_in(tiny)
    inputs = arguments(plain)
    made = carried.velocity(*inputs)
    assert not torch.allclose(made, plain.velocity(*inputs), atol=1e-2)
    # What was trained on 8 bits is merged into the weights before they were rounded.
    near = 0.05 if KINDS[kind].base is BaseFormat.int8 else 1e-4
    torch.testing.assert_close(whole.velocity(*inputs), made, atol=near, rtol=0)
    there, here = (open_checkpoint(path).network for path in (tiny, target))
    assert {name: tensor.dtype for name, tensor in here.items()} == {name: t.dtype for name, t in there.items()}


@torch.no_grad()
def test_scale_scales_the_merged_difference(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapted(tiny, folder, LORA)
    assert main(["merge", str(folder), str(tmp_path / "whole")]) == 0
    assert main(["merge", str(folder), str(tmp_path / "half"), "--scale", "0.5", "--weights", str(tiny)]) == 0
    plain, half, whole = (open_checkpoint(path).network for path in (tiny, tmp_path / "half", tmp_path / "whole"))
    for name, tensor in plain.items():
        torch.testing.assert_close(half[name], (tensor + whole[name]) / 2, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_diffusers_gives_equal_results_with_the_exported_lora(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="a development dependency")
    from diffusers import AceStepPipeline

    from benchmarks.sampler import diffusers_dit

    network, file = adapted(tiny, tmp_path / "adapter", LORA), tmp_path / "lora.safetensors"
    assert main(["export", str(tmp_path / "adapter"), str(file), "--to", "diffusers"]) == 0
    theirs = diffusers_dit(network_in(tiny))
    x_t, t, conditions = arguments(network)

    def peer() -> Tensor:
        return theirs(x_t, t, t, conditions.states, conditions.context, return_dict=False)[0]

    before, made = peer(), network.velocity(x_t, t, conditions)
    AceStepPipeline.load_lora_into_transformer(AceStepPipeline.lora_state_dict(str(file)), transformer=theirs)
    torch.testing.assert_close(peer(), made, atol=1e-4, rtol=0)
    assert not torch.allclose(before, made, atol=1e-2)


def test_an_export_has_every_layer(tiny: Path, tmp_path: Path) -> None:
    network, file = adapted(tiny, tmp_path / "adapter", KINDS["lokr"]), tmp_path / "lokr.safetensors"
    assert main(["export", str(tmp_path / "adapter"), str(file), "--to", "comfyui"]) == 0
    names = {name.rpartition(".lokr")[0] for name in load_file(file) if ".lokr" in name}
    assert len(names) == network.config.num_hidden_layers * 2 * 4  # self- and cross-attention, four matrices each
    assert all(name.startswith("diffusion_model.decoder.layers.") for name in names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "{adapter}", "{adapter}"], "exists; name a new folder"),
        (["export", "{adapter}", "{there}", "--to", "diffusers"], "exists; name a new file"),
        (["export", "{adapter}", "{new}", "--to", "diffusers"], "diffusers reads plain LoRA alone"),
        (["merge", "{bare}", "{new}"], "base weights are unknown"),
        (["merge", "{nothing}", "{new}"], "no adapter there"),
    ],
)
def test_invalid_paths_are_one_line_errors(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("adapter", "bare", "nothing", "there", "new")}
    for name in ("adapter", "bare"):
        adapted(tiny, places[name], KINDS["dora"])
    (places["bare"] / "base.json").unlink()
    places["nothing"].mkdir()
    places["there"].write_text("mine")
    assert main([word.format(**places) for word in words]) == 1
    assert message in capsys.readouterr().err
