from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acestep.flow import CFG, CoverStart, CoverSwitch, Linear, NoGuidance, Repaint, Sampler, SamplerTask
from acestep.types import Conditions


def span(frames: int, first: int, end: int) -> Tensor:
    at = torch.arange(frames)
    return ((at >= first) & (at < end))[None]


@pytest.mark.parametrize(
    ("strength", "start", "steps"), [(0.0, 1.0, 8), (0.4, 0.625, 5), (0.49, 0.5, 4), (1.0, 0.125, 1)]
)
def test_cover_start_shortens_the_schedule(strength: float, start: float, steps: int) -> None:
    noise, source = torch.randn(1, 5, 4), torch.randn(1, 5, 4)
    x, times = CoverStart(source=source, strength=strength)(noise, Linear(steps=8)())
    assert times[0] == start
    assert len(times) == steps + 1
    torch.testing.assert_close(x, start * noise + (1 - start) * source)


@given(strength=st.floats(0, 1), steps=st.integers(1, 12))
def test_switch_happens_once_at_its_fraction_of_steps(strength: float, steps: int) -> None:
    empty = Conditions(torch.zeros(1, 1, 1), torch.ones(1, 1).bool(), torch.zeros(1, 1, 2), torch.ones(1, 1).bool())
    switch = CoverSwitch(conditions=empty, strength=strength)
    due = [index for index in range(steps) if switch.switches_at(index, steps)]
    assert due == ([int(steps * strength)] if strength < 1 else [])


def test_switched_conditions_are_used(toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]) -> None:
    first, second = conditions_for([5], [1]), conditions_for([5], [2])
    null = conditions_for([5], [2], null=True)
    noise = torch.randn(1, 5, 4)
    sampler = Sampler(Linear(steps=4), guidance=CFG(scale=2.0))
    at_once = SamplerTask(switch=CoverSwitch(conditions=second, null=null, strength=0.0))
    assert torch.equal(sampler(toy, noise, first, null, task=at_once), sampler(toy, noise, second, null))
    never = SamplerTask(switch=CoverSwitch(conditions=second, null=null, strength=1.0))
    assert torch.equal(sampler(toy, noise, first, null, task=never), sampler(toy, noise, first, null))


@given(frames=st.integers(2, 30), fade=st.integers(0, 12), data=st.data())
def test_blend_fades_outside_the_span(frames: int, fade: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, frames - 1))
    end = data.draw(st.integers(first + 1, frames))
    weight = Repaint(mask=span(frames, first, end), clean=torch.zeros(1, frames, 1), crossfade_frames=fade).blend(
        torch.ones(1, frames, 1)
    )[0, :, 0]
    assert (weight[first:end] == 1).all()
    assert (weight[: max(first - fade, 0)] == 0).all()
    assert (weight[end + fade :] == 0).all()
    assert (weight[:first].diff() >= 0).all()
    assert (weight[end:].diff() <= 0).all()
    outside = torch.cat([weight[max(first - fade, 0) : first], weight[end : end + fade]])
    assert ((outside > 0) & (outside < 1)).all()


def test_full_and_empty_rows_have_no_ramp() -> None:
    mask = torch.stack([torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)])
    blended = Repaint(mask=mask, clean=torch.zeros(2, 6, 1)).blend(torch.ones(2, 6, 1))
    assert torch.equal(blended[..., 0], mask.float())


@given(ratio=st.floats(0, 1), steps=st.integers(1, 20))
def test_injections_come_first(ratio: float, steps: int) -> None:
    repaint = Repaint(mask=span(4, 1, 2), clean=torch.zeros(1, 4, 1), injection_ratio=ratio)
    assert [repaint.injects_after(i, steps) for i in range(steps)] == [i < round(ratio * steps) for i in range(steps)]


@pytest.mark.parametrize("fade", [0, 2])
def test_repaint_keeps_latents_outside_the_mask(
    toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions], fade: int
) -> None:
    clean, mask = torch.randn(1, 12, 4), span(12, 5, 8)
    repaint = Repaint(mask=mask, clean=clean, injection_ratio=1.0, crossfade_frames=fade)
    sampler = Sampler(Linear(steps=3), guidance=NoGuidance())
    made = sampler(toy, torch.randn(1, 12, 4), conditions_for([12]), task=SamplerTask(repaint=repaint))
    kept = torch.cat([made[:, : 5 - fade], made[:, 8 + fade :]], 1)
    torch.testing.assert_close(kept, torch.cat([clean[:, : 5 - fade], clean[:, 8 + fade :]], 1))
    assert not torch.isclose(made[:, 5:8], clean[:, 5:8]).all()


def test_distilled_last_step_is_not_injected(
    toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    clean, mask = torch.randn(1, 6, 4), span(6, 2, 4)
    task = SamplerTask(repaint=Repaint(mask=mask, clean=clean, injection_ratio=1.0, crossfade_frames=0))
    sampler = Sampler(Linear(steps=1), guidance=NoGuidance(), clean_last=True)
    noise, conditions = torch.randn(1, 6, 4), conditions_for([6])
    assert torch.equal(sampler(toy, noise, conditions, task=task), sampler(toy, noise, conditions))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoverStart(source=torch.zeros(1, 1, 1), strength=1.5), r"start.strength=1.5: need 0 to 1"),
        (
            lambda: Repaint(mask=span(4, 1, 2), clean=torch.zeros(1, 4, 1), injection_ratio=-1),
            r"repaint.injection_ratio=-1",
        ),
        (
            lambda: Repaint(mask=span(4, 1, 2), clean=torch.zeros(1, 4, 1), crossfade_frames=-1),
            r"repaint.crossfade_frames=-1",
        ),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
