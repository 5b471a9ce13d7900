"""The lyric score on attention that one can draw by hand."""

from __future__ import annotations

import pytest
import torch

from acestep.evaluation.alignment import alignment_score, warping_path

BLOCKS = torch.eye(4).repeat_interleave(4, dim=1)
ATTRACTOR = torch.zeros(8, 8).index_fill(0, torch.tensor([0]), 1.0)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (torch.eye(8), 0.5333),
        (BLOCKS, 0.8421),
        (torch.eye(8).flip(0), 0.0667),
        (torch.full((8, 8), 0.3), 0.0),
        (ATTRACTOR, 0.0083),
    ],
    ids=["diagonal", "blocks of 4", "anti-diagonal", "uniform", "one attractor"],
)
def test_upstreams_values(attention: torch.Tensor, expected: float):
    assert alignment_score(attention) == pytest.approx(expected, abs=1e-9)
    assert alignment_score(3 * attention + 1) == pytest.approx(expected, abs=1e-4)


def test_a_walk_backwards_costs():
    forward = torch.eye(6).repeat_interleave(20, dim=1)
    backward = forward[[0, 3, 1, 4, 2, 5]]
    assert alignment_score(backward) < 0.5 * alignment_score(forward)


def test_rows_of_tags_are_left_out():
    tagged = torch.cat([torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) * 5, BLOCKS])
    sung = torch.tensor([False, False, True, True, True, True])
    assert alignment_score(tagged, sung) == pytest.approx(0.8421)
    assert alignment_score(tagged, torch.zeros(6, dtype=torch.bool)) == 0.0


def test_the_path_is_whole():
    path = warping_path(torch.rand(5, 9, generator=torch.Generator().manual_seed(1)))
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [4, 8]
    assert set(map(tuple, path.diff(dim=0).tolist())) <= {(0, 1), (1, 0), (1, 1)}
