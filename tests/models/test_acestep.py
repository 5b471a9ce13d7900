"""The whole network: sizes, names, initialisation, conditions."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import TINY, batch, network, normal, random_conditions, random_inputs

from acestep.models.acestep import ENCODER_SIZES, AceStep, AceStepConfig
from acestep.models.dit import Padding

SINGLE_WIDTH = AceStepConfig(
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=24,
    num_attention_heads=16,
    **dict.fromkeys(ENCODER_SIZES),
)
SILENCE = torch.ones(1, 8, 4)


@pytest.mark.parametrize(
    ("config", "counts", "tensors"),
    [
        (AceStepConfig(), (4_168_897_088, 608_367_616, 105_032_198, 105_011_776, 4_987_310_726), 829),
        (SINGLE_WIDTH, (1_575_458_880, 608_367_616, 105_032_198, 105_011_776, 2_393_872_518), 677),
    ],
    ids=["xl", "2b"],
)
def test_published_sizes(config: AceStepConfig, counts: tuple[int, ...], tensors: int) -> None:
    with torch.device("meta"):
        model = AceStep(config)
    parts = (model.decoder, model.encoder, model.tokenizer, model.detokenizer, model)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == counts
    assert len(model.state_dict()) == tensors
    assert not list(model.buffers())


def test_published_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in AceStep(AceStepConfig()).state_dict().items()}
    assert shapes["decoder.proj_in.1.weight"] == (2560, 192, 2)
    assert shapes["decoder.proj_out.1.weight"] == (2560, 64, 2)
    assert shapes["decoder.time_embed_r.time_proj.weight"] == (15360, 2560)
    assert shapes["decoder.condition_embedder.weight"] == (2560, 2048)
    assert shapes["decoder.layers.31.cross_attn.k_proj.weight"] == (1024, 2560)
    assert shapes["decoder.layers.0.self_attn.q_proj.weight"] == (4096, 2560)
    assert shapes["encoder.lyric_encoder.layers.7.self_attn.q_proj.weight"] == (2048, 2048)
    assert shapes["encoder.timbre_encoder.special_token"] == (1, 1, 2048)
    assert shapes["tokenizer.quantizer.project_in.weight"] == (6, 2048)
    assert shapes["detokenizer.special_tokens"] == (1, 5, 2048)


def test_layer_types_alternate_by_default() -> None:
    assert TINY.layer_types == ("sliding_attention", "full_attention", "sliding_attention")
    assert replace(TINY, layer_types=["full_attention"] * 3).layer_types == ("full_attention",) * 3


def test_config_round_trips_through_its_dictionary() -> None:
    assert AceStepConfig.from_dict(TINY.to_dict()) == TINY
    assert AceStepConfig.from_dict(TINY.to_dict() | {"padding": "masked"}).padding is Padding.masked


def test_published_dictionary_without_encoder_sizes_is_single_width() -> None:
    published = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 8, "num_attention_heads": 8}
    config = AceStepConfig.from_dict(published | {"fsq_dim": 8, "vocab_size": 64003, "rope_scaling": None})
    assert config.single_width
    assert config.encoder.hidden_size == 8
    assert config.encoder.num_key_value_heads == 8


def test_sliding_window_can_be_switched_off() -> None:
    assert replace(TINY, use_sliding_window=False).dit.stack.sliding_window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "colour='red'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"encoder_hidden_size": None}, "encoder_hidden_size must be given"),
        ({"encoder_num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"sliding_window": -1}, "sliding_window=-1"),
        ({"layer_types": ["full_attention"]}, "num_hidden_layers=3"),
        ({"layer_types": ["full_attention"] * 2 + ["causal"]}, "'causal'"),
        ({"num_lyric_encoder_hidden_layers": 4}, "num_lyric_encoder_hidden_layers=4"),
        ({"num_timbre_encoder_hidden_layers": 0}, "num_timbre_encoder_hidden_layers=0"),
        ({"in_channels": 13}, "in_channels=13"),
        ({"fsq_dim": 24}, "fsq_dim=24"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"fsq_input_levels": [8, 1]}, "fsq_input_levels"),
        ({"padding": "none"}, "'none'"),
    ],
)
def test_invalid_sizes_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        AceStepConfig.from_dict(TINY.to_dict() | changes)


def test_missing_sizes_are_an_error() -> None:
    published = TINY.to_dict()
    del published["num_hidden_layers"]
    with pytest.raises(ValueError, match="num_hidden_layers: missing"):
        AceStepConfig.from_dict(published)


def test_initialisation_depends_on_the_generator_only() -> None:
    first, second, other = AceStep(TINY), AceStep(TINY), AceStep(TINY)
    for model, seed in ((first, 3), (second, 3), (other, 4)):
        model.init_weights(torch.Generator().manual_seed(seed))
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert not torch.equal(first.null_condition_emb, other.null_condition_emb)


@torch.no_grad()
def test_initialisation_has_the_published_standard_deviation() -> None:
    model = AceStep(replace(TINY, hidden_size=100, initializer_range=0.02))
    model.init_weights(torch.Generator().manual_seed(0))
    layer = model.decoder.layers[0]
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.scale_shift_table.std().item() == pytest.approx(0.1, rel=0.1)
    assert model.encoder.timbre_encoder.special_token.std().item() == pytest.approx(1, rel=0.5)
    assert (layer.self_attn.q_norm.weight == 1).all()
    assert (model.decoder.time_embed.linear_1.bias == 0).all()


def test_null_replaces_states_only() -> None:
    model = network()
    conditions = random_conditions(torch.Generator().manual_seed(0), frames=9, tokens=5)
    null = model.null(conditions)
    assert torch.equal(null.states, model.null_condition_emb.expand(1, 5, -1))
    assert null.mask is conditions.mask
    assert null.context is conditions.context


def test_hints_replace_the_source_of_covers_only() -> None:
    model, generator = network(), torch.Generator().manual_seed(0)
    inputs = batch([random_inputs(generator, 9, 3, 3), random_inputs(generator, 9, 3, 3)], generator)
    hints = normal(generator, 2, 12, 4)
    inputs = replace(inputs, is_cover=torch.tensor([False, True]), hints=hints)
    context = model.condition(inputs, SILENCE).context
    assert torch.equal(context[0, :, :4], inputs.source[0])
    assert torch.equal(context[1, :, :4], hints[1, :9])
    round_trip = model.condition(replace(inputs, hints=None), SILENCE).context
    assert torch.equal(round_trip[1, :, :4], model.round_trip(inputs.source, SILENCE)[1, :9])
    with pytest.raises(ValueError, match="hints have 8 frames"):
        model.condition(replace(inputs, hints=hints[:, :8]), SILENCE)


def test_every_parameter_of_a_cover_has_a_gradient() -> None:
    model, generator = network(), torch.Generator().manual_seed(0)
    inputs = replace(random_inputs(generator, 11, 3, 3), is_cover=torch.tensor([True]))
    conditions = model.condition(inputs, SILENCE)
    conditions = conditions.cat(model.null(conditions))
    model.velocity(normal(generator, 2, 11, 4), torch.tensor([0.2, 0.8]), conditions).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()} == set()


def test_single_width_ignores_its_timbre_token() -> None:
    model = network(replace(TINY, fsq_dim=24, **dict.fromkeys(ENCODER_SIZES)))
    inputs = random_inputs(torch.Generator().manual_seed(0), 9, 3, 3, model.config)
    before = model.condition(inputs, SILENCE).states
    model.encoder.timbre_encoder.special_token.data += 1
    assert torch.equal(model.condition(inputs, SILENCE).states, before)
    wide = network()
    before = wide.condition(inputs, SILENCE).states
    wide.encoder.timbre_encoder.special_token.data += 1
    assert not torch.equal(wide.condition(inputs, SILENCE).states, before)


def test_half_precision_follows_the_inputs() -> None:
    model = network().to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    inputs = replace(random_inputs(generator, 9, 3, 3), is_cover=torch.tensor([True])).to("cpu", torch.bfloat16)
    conditions = model.condition(inputs, SILENCE.bfloat16())
    velocity = model.velocity(normal(generator, 1, 9, 4).bfloat16(), torch.tensor([0.7]), conditions)
    assert velocity.dtype == torch.bfloat16
    assert velocity.isfinite().all()
