"""The parts: what attends to what, and what keeps which dtype."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import TINY, network, normal, random_conditions

from acestep.models.conditioner import by_song, pack
from acestep.models.dit import sinusoid
from acestep.models.layers import FULL, SLIDING, Attention, RMSNorm, attention_masks, rotary_table, rotate

LIKE = torch.zeros(())


def test_band_includes_both_ends() -> None:
    visible = attention_masks(7, 2, None, LIKE)[SLIDING] == 0
    distance = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    assert torch.equal(visible, distance <= 2)


@pytest.mark.parametrize(("length", "window"), [(3, 2), (3, 7), (100, None)])
def test_no_mask_where_the_band_holds_everything(length: int, window: int | None) -> None:
    assert attention_masks(length, window, None, LIKE) == {FULL: None, SLIDING: None}


def test_invalid_keys_are_hidden_in_both_kinds_of_layer() -> None:
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    masks = attention_masks(4, 1, valid, LIKE)
    assert torch.equal(masks[FULL][:, 0, 0] == 0, valid)
    assert (masks[SLIDING][0, 0, :, 2:] < 0).all()
    assert torch.equal(masks[SLIDING][1, 0] == 0, attention_masks(4, 1, None, LIKE)[SLIDING] == 0)


def test_a_change_spreads_one_window_per_sliding_layer() -> None:
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
    q, k = rotate(q.expand(1, 1, 20, 8), table), rotate(k.expand(1, 1, 20, 8), table)
    scores = (q @ k.mT)[0, 0]
    for offset in (-3, 0, 5):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_norm_computes_in_float32_and_keeps_the_dtype() -> None:
    norm = RMSNorm(4, 1e-6).half()
    x = torch.full((1, 4), 300.0, dtype=torch.float16)  # its square is beyond half precision
    assert torch.equal(norm(x), torch.ones(1, 4, dtype=torch.float16))


def test_attention_bias_is_a_choice() -> None:
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
    states, mask = pack(first, torch.tensor([[True, False, True]]), second, torch.tensor([[False, True]]))
    assert states.flatten().tolist() == [1, 3, 5, 2, 4]
    assert mask.tolist() == [[True, True, True, False, False]]


def test_references_go_to_their_songs_in_order() -> None:
    states, mask = by_song(torch.arange(1.0, 5.0).unsqueeze(-1), torch.tensor([2, 0, 2, 2]), songs=3)
    assert states.squeeze(-1).tolist() == [[2, 0, 0], [0, 0, 0], [1, 3, 4]]
    assert mask.tolist() == [[True, False, False], [False, False, False], [True, True, True]]
