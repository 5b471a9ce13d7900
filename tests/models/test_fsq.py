"""Finite scalar quantization and the audio tokenizer."""

from __future__ import annotations

import pytest
import torch
from networks import network, normal

from acestep.models.tokenizer import FSQ

LEVELS = (8, 8, 8, 5, 5, 5)


@pytest.fixture
def quantizer() -> FSQ:
    torch.manual_seed(0)
    return FSQ(16, LEVELS)


def test_codes_round_trip_through_values(quantizer: FSQ) -> None:
    assert quantizer.codebook_size == 64_000
    values = quantizer.values(torch.arange(64_000))
    assert values.unique(dim=0).shape == (64_000, 6)
    assert values.abs().max() == 1
    for dimension, levels in enumerate(LEVELS):
        torch.testing.assert_close(values[:, dimension].unique(), torch.linspace(-1, 1, levels))


def test_forward_agrees_with_decoded_codes(quantizer: FSQ) -> None:
    x = 3 * normal(torch.Generator().manual_seed(0), 5, 7, 16)
    quantized, codes = quantizer(x)
    assert codes.shape == (5, 7)
    assert 0 <= codes.min() <= codes.max() < 64_000
    torch.testing.assert_close(quantized, quantizer.decode(codes))


def test_straight_through_gradients(quantizer: FSQ) -> None:
    x = normal(torch.Generator().manual_seed(0), 3, 16).requires_grad_()
    quantizer(x)[0].square().sum().backward()
    assert x.grad.abs().min() > 0
    assert quantizer.project_in.weight.grad.any()


def test_codes_are_computed_in_float32_for_any_dtype(quantizer: FSQ) -> None:
    x = 3 * normal(torch.Generator().manual_seed(0), 400, 16).bfloat16()
    half = quantizer.bfloat16()
    quantized, codes = half(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(half(x)[1], codes)
    assert quantized.dtype == half.decode(codes).dtype == torch.bfloat16
    assert torch.equal(half.float()(x.float())[1], codes)


@torch.no_grad()
def test_last_group_is_padded_with_silence() -> None:
    model, generator = network(), torch.Generator().manual_seed(0)
    latents, silence = normal(generator, 2, 8, 4), normal(generator, 1, 6, 4)
    filled = torch.cat([latents, silence[:, :2].expand(2, -1, -1)], dim=1)
    assert torch.equal(model.tokenizer(latents, silence)[1], model.tokenizer(filled, silence)[1])
    assert model.round_trip(latents, silence).shape == (2, 10, 4)


def test_code_mask_is_true_for_partly_valid_groups() -> None:
    mask = torch.arange(13) < torch.tensor([[13], [5], [6], [0]])
    assert network().tokenizer.code_mask(mask).sum(1).tolist() == [3, 1, 2, 0]
