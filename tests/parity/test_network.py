"""DiT, condition encoder and tokenizer equal the public reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import Case, activations, cases, condition_inputs, decoder_conditions, load_case, load_model
from torch import Tensor

from acestep.models.acestep import AceStep
from acestep.models.conditioner import group_references
from acestep.models.rotary import rotary_table


@pytest.mark.parametrize("path", cases("decoder"))
def test_decoder(path: Path) -> None:
    case = load_case(path)
    decoder = load_model(case.model).decoder
    given = case.inputs
    with torch.no_grad(), activations(decoder) as seen:
        velocity = decoder(given["hidden_states"], given["timestep"], decoder_conditions(given), given["timestep_r"])
    stack = decoder.config.stack
    cos, sin = rotary_table(seen["proj_in"].shape[1], stack.head_dim, stack.rope_theta, velocity)
    seen |= {"velocity": velocity, "velocity_sdpa": velocity, "rope_cos": cos[None], "rope_sin": sin[None]}
    for name in ("time_embed", "time_embed_r"):
        seen[f"{name}.temb"], seen[f"{name}.proj"] = seen[name]
    groups = stack.num_attention_heads // stack.num_key_value_heads
    for index in range(len(decoder.layers)):
        seen[f"cross_attn_probs.{index}"] = _probabilities(seen, f"layers.{index}.cross_attn", groups)
    _check_all(case, {name.replace("layers.", "layer."): value for name, value in seen.items()})


@pytest.mark.parametrize("path", cases("condition"))
def test_condition(path: Path) -> None:
    case = load_case(path)
    network = load_model(case.model)
    given = case.inputs
    with torch.no_grad(), activations(network.encoder) as seen:
        if "src_latents" in given:
            conditions = network.condition(condition_inputs(given), given["silence_latent"])
            seen["context_latents"] = conditions.context
            states, mask = conditions.states, conditions.mask
        else:
            states, mask = network.encoder(
                given["text_hidden_states"],
                given["text_attention_mask"].bool(),
                given["lyric_hidden_states"],
                given["lyric_attention_mask"].bool(),
                given["refer_audio_acoustic_hidden_states_packed"],
                given["refer_audio_order_mask"],
            )
    timbre, timbre_mask = group_references(seen["timbre_encoder"], given["refer_audio_order_mask"], len(states))
    seen |= {
        "encoder_hidden_states": states,
        "encoder_attention_mask": mask,
        "text_projected": seen["text_projector"],
        "timbre_last_hidden": seen["timbre_encoder.norm"],
        "timbre_unpacked": timbre,
        "timbre_mask": timbre_mask,
    }
    _check_all(case, seen)


@pytest.mark.parametrize("path", cases("tokenizer"))
@torch.no_grad()
def test_tokenizer(path: Path) -> None:
    case = load_case(path)
    network = load_model(case.model)
    outputs = _quantizer_outputs if "fsq_in" in case.inputs else _tokenizer_outputs
    _check_all(case, outputs(case, network))


def _quantizer_outputs(case: Case, network: AceStep) -> dict[str, Tensor]:
    quantizer = network.tokenizer.quantizer
    codes = case.inputs["indices"].squeeze(-1)  # upstream keeps an axis for its residual stages, of which there is one
    out, indices = quantizer(case.inputs["fsq_in"])
    return {
        "codes": quantizer.values(codes),
        "output": quantizer.decode(codes),
        "hints_25hz": network.detokenizer(quantizer.decode(codes)),
        "fsq_out": out,
        "fsq_indices": indices.unsqueeze(-1),
    }


def _tokenizer_outputs(case: Case, network: AceStep) -> dict[str, Tensor]:
    latents, silence = case.inputs["latents"], case.inputs["silence_latent"]
    quantized, codes = network.tokenizer(latents, silence)
    decoded = network.tokenizer.quantizer.decode(codes)
    return {
        "quantized": quantized,
        "indices": codes.unsqueeze(-1),
        "token_mask": network.tokenizer.code_mask(case.inputs["attention_mask"].bool()).to(latents.dtype),
        "hints_25hz": network.round_trip(latents, silence),
        "quantized_from_indices": decoded,
        "hints_from_indices": network.detokenizer(decoded),
    }


def _probabilities(seen: dict[str, Tensor], attention: str, groups: int) -> Tensor:
    """Cross-attention probabilities (B, N, S, L) from the normalised query and key heads that went by."""
    q = seen[f"{attention}.q_norm"].transpose(1, 2)
    k = seen[f"{attention}.k_norm"].transpose(1, 2).repeat_interleave(groups, dim=1)
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def _check_all(case: Case, seen: dict[str, Tensor]) -> None:
    assert case.outputs
    for name in case.outputs:
        case.check(name, seen[name])
