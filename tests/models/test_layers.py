"""Layers: masks, norms, rotary embedding, attention, and their dtypes and gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from networks import TINY, network, normal, random_conditions, two_songs
from torch.nn.attention import SDPBackend, sdpa_kernel

from acestep.models.attention import (
    CPU_BLOCK,
    FULL,
    SLIDING,
    BandMask,
    additive_mask,
    attention_masks,
    scaled_dot_product,
)
from acestep.models.conditioner import group_references, pack_sequences
from acestep.models.dit import sinusoid
from acestep.models.layers import Attention, RMSNorm
from acestep.models.rotary import rotary_table, rotate

LIKE = torch.zeros(())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("length", "window"), [(12, 8), (65, 63), (77, 3), (130, 64), (200, 0), (256, 64)])
def test_band_mask_equals_dense_masked_attention(length: int, window: int, padded: bool) -> None:
    generator = torch.Generator().manual_seed(length)
    heads = [normal(generator, 3, length, count, 8).requires_grad_() for count in (4, 2, 2)]
    positions = torch.arange(length)
    visible = ((positions[:, None] - positions).abs() <= window)[None, None]
    valid = None
    if padded:
        valid = torch.rand(3, length, generator=generator) < 0.7
        valid[1:, length // 3 :] = False  # windows without a valid key
        valid[2] = False  # no valid key at all
        visible = visible & valid[:, None, None]
    banded = scaled_dot_product(*heads, attention_masks(length, window, valid, LIKE)[SLIDING])
    dense = scaled_dot_product(*heads, additive_mask(visible, LIKE))
    torch.testing.assert_close(banded, dense, atol=1e-6, rtol=1e-5)
    # Gradients of fully masked queries are those of rounding errors.
    sees = visible.any(-1)[:, 0, :, None]
    for one, other in zip(
        *(torch.autograd.grad((x * sees).square().sum(), heads) for x in (banded, dense)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_band_mask_size_is_linear_in_the_length() -> None:
    def largest(length: int) -> int:
        band = attention_masks(length, 32, torch.ones(1, length, dtype=torch.bool), LIKE)[SLIDING]
        assert isinstance(band, BandMask)
        return band.bias.numel()

    assert largest(64 * 40) == 10 * largest(64 * 4) == 64 * 40 * (CPU_BLOCK + 2 * 32)


@pytest.mark.parametrize(("length", "window"), [(3, 2), (3, 7), (100, None)])
def test_no_mask_where_the_window_covers_everything(length: int, window: int | None) -> None:
    assert attention_masks(length, window, None, LIKE) == {FULL: None, SLIDING: None}


def test_invalid_keys_are_masked_in_full_attention() -> None:
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    for mask in attention_masks(4, None, valid, LIKE).values():
        assert torch.equal(mask[:, 0, 0] == 0, valid)


def test_receptive_field_grows_one_window_per_sliding_layer() -> None:
    model = network(replace(TINY, layer_types=(SLIDING,) * 3, sliding_window=2))
    generator = torch.Generator().manual_seed(0)
    conditions = random_conditions(generator, frames=60, tokens=3)
    x_t = normal(generator, 1, 60, 4)
    changed = x_t.clone()
    changed[0, 30] += 1
    t = torch.tensor([0.5])
    difference = (model.velocity(changed, t, conditions) - model.velocity(x_t, t, conditions)).abs().amax(-1)[0]
    # Three layers of two patches to either side of patch 15, which is frames 30 and 31.
    assert torch.equal(difference.nonzero().flatten(), torch.arange(30 - 12, 32 + 12))


def test_rotation_depends_on_distance_only() -> None:
    table = rotary_table(20, 8, 1e4, LIKE)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    q, k = rotate(q.expand(1, 20, 1, 8), table), rotate(k.expand(1, 20, 1, 8), table)
    scores = q[0, :, 0] @ k[0, :, 0].T
    for offset in (-3, 0, 5):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_rms_norm_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(6, eps=0.1).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    x[0, 0] = 0  # like padding
    for differentiable in (norm.normalize, lambda x: norm.normalize(x * x) * x):  # alone, and in a composite
        assert torch.autograd.gradcheck(differentiable, x.requires_grad_(), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(differentiable, x, check_fwd_over_rev=True)
    assert torch.autograd.gradcheck(norm.normalize, x, check_batched_grad=True)


def test_rotation_gradients() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = rotary_table(5, 8, 100.0, x)
    differentiable = partial(rotate, rotary=table)
    assert torch.autograd.gradcheck(differentiable, x.requires_grad_(), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(differentiable, x, check_fwd_over_rev=True)


def test_velocity_has_forward_mode_derivatives() -> None:
    """As mean flow training needs them (Geng et al. 2025, arXiv 2505.13447)."""
    model = network().double()
    conditions, x_t = two_songs(50)
    conditions, x_t = conditions.to("cpu", torch.float64), x_t.double()
    t, along = torch.full((2,), 0.3, dtype=torch.float64), x_t.flip(1)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():  # torch's fused kernel has no jvp
        _, made = torch.func.jvp(lambda x: model.velocity(x, t, conditions), (x_t,), (along,))
        ahead, behind = (model.velocity(x_t + step * along, t, conditions) for step in (1e-5, -1e-5))
    torch.testing.assert_close(made, (ahead - behind) / 2e-5, atol=1e-7, rtol=1e-6)


def test_norm_computes_in_float32_and_keeps_the_dtype() -> None:
    norm = RMSNorm(4, 1e-6).half()
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square is beyond half precision
    assert torch.equal(norm(x), torch.ones(1, 4, dtype=torch.float16))


def test_attention_bias_is_optional() -> None:
    assert Attention(TINY.dit.stack).q_proj.bias is None
    assert Attention(replace(TINY.dit.stack, attention_bias=True)).o_proj.bias is not None


def test_sinusoid_starts_with_cosines_of_a_thousand_t() -> None:
    values = sinusoid(torch.tensor([1.0, 0.0]))
    angles = 1000 * 10000 ** (-torch.arange(3, dtype=torch.float64) / 128)
    torch.testing.assert_close(values[0, :3].double(), angles.cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(values[0, 128:131].double(), angles.sin(), atol=1e-4, rtol=0)
    assert torch.equal(values[1], torch.tensor([1.0] * 128 + [0.0] * 128))


def test_packing_puts_valid_rows_first_and_keeps_order() -> None:
    first = torch.tensor([[1.0, 2.0, 3.0]]).unsqueeze(-1)
    second = torch.tensor([[4.0, 5.0]]).unsqueeze(-1)
    states, mask = pack_sequences(first, torch.tensor([[True, False, True]]), second, torch.tensor([[False, True]]))
    assert states.flatten().tolist() == [1, 3, 5, 2, 4]
    assert mask.tolist() == [[True, True, True, False, False]]


def test_references_go_to_their_songs_in_order() -> None:
    states, mask = group_references(torch.arange(1.0, 5.0).unsqueeze(-1), torch.tensor([2, 0, 2, 2]), songs=3)
    assert states.squeeze(-1).tolist() == [[2, 0, 0], [0, 0, 0], [1, 3, 4]]
    assert mask.tolist() == [[True, False, False], [False, False, False], [True, True, True]]
