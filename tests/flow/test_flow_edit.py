from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from acestep.flow import APG, Custom, FlowEdit, Linear, NoGuidance, SongNoise
from acestep.flow.noise import song_generators
from acestep.types import Conditions


def fresh(frames: list[int]) -> SongNoise:
    return SongNoise(song_generators(range(len(frames))), frames, channels=4)


@pytest.mark.parametrize("draws", [1, 3])
def test_equal_prompts_leave_the_source_unchanged(
    draws: int, toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    source, conditions, null = torch.randn(2, 5, 4), conditions_for([5, 5]), conditions_for([5, 5], null=True)
    edit = FlowEdit(schedule=Linear(steps=4), draws=draws)
    made = edit(toy, source, conditions, conditions, fresh([5, 5]), null, null)
    torch.testing.assert_close(made, source)


def test_a_constant_velocity_difference_is_added(conditions_for: Callable[..., Conditions]) -> None:
    source, before, after = torch.randn(1, 5, 4), conditions_for([5], [1]), conditions_for([5], [2])

    def field(x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return conditions.states.mean(1, keepdim=True).expand_as(x)

    edit = FlowEdit(schedule=Linear(steps=4), guidance=NoGuidance())
    made = edit(field, source, before, after, fresh([5]))
    shift = before.states.mean(1, keepdim=True) - after.states.mean(1, keepdim=True)
    torch.testing.assert_close(made, source + shift)


def test_an_empty_window_leaves_the_source_unchanged(
    toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    source, conditions = torch.randn(1, 5, 4), conditions_for([5])
    edit = FlowEdit(schedule=Linear(steps=4), guidance=NoGuidance(), n_min=1.0)
    assert torch.equal(edit(toy, source, conditions, conditions, fresh([5])), source)
    assert edit.evaluations == 0


def test_after_the_window_only_the_target_is_integrated(
    toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    """With no window at all, that is ordinary generation from the source's place in noise."""
    data, conditions = torch.randn(1, 5, 4), conditions_for([5])
    edit = FlowEdit(schedule=Linear(steps=4), guidance=NoGuidance(), n_max=0.0)
    made = edit(lambda x, t, c: (x - data) / t[:, None, None], torch.randn(1, 5, 4), conditions, conditions, fresh([5]))
    torch.testing.assert_close(made, data, atol=1e-5, rtol=1e-5)


def test_schedules_are_closed_and_evaluations_are_counted(
    make_toy: Callable[[], Any], conditions_for: Callable[..., Conditions]
) -> None:
    toy = make_toy()
    edit = FlowEdit(schedule=Custom(timesteps=[1.0, 0.6, 0.3]), guidance=APG(scale=3.0, t_min=0.5), n_max=0.7, draws=2)
    conditions, null = conditions_for([5, 5]), conditions_for([5, 5], null=True)
    edit(toy, torch.randn(2, 5, 4), conditions, conditions, fresh([5, 5]), null, null)
    assert edit.evaluations == 4 * 2 + 4 * 2 + 1
    assert toy.rows == 2 * edit.evaluations
    assert toy.times[-1] == pytest.approx(0.3)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"edit.n_min=0.6, edit.n_max=0.5"):
        FlowEdit(n_min=0.6, n_max=0.5)
    with pytest.raises(ValueError, match=r"edit.draws=0"):
        FlowEdit(draws=0)
