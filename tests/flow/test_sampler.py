from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep.flow import (
    ADG,
    APG,
    CFG,
    DCW,
    SDE,
    Euler,
    Heun,
    Linear,
    NoCorrection,
    NoGuidance,
    NormClamp,
    Sampler,
    Shifted,
    SongNoise,
    Turbo,
    VelocityEMA,
    initial_noise,
)
from acestep.flow.dcw import DCWBand
from acestep.flow.noise import song_generators
from acestep.flow.path import clean_estimate
from acestep.flow.solvers import Renoise, Solver, Step
from acestep.types import Conditions

SCHEDULES = st.builds(Shifted, steps=st.integers(1, 6), shift=st.floats(0.3, 5))
SOLVERS = st.sampled_from([Euler(), Heun(), SDE(), SDE(renoise=Renoise.schedule)])
INTERVAL = st.tuples(st.floats(0, 0.5), st.floats(0.5, 1))
GUIDANCES = st.one_of(
    st.just(NoGuidance()),
    *(
        st.builds(
            lambda scale, ends, rule=rule: rule(scale=scale, t_min=ends[0], t_max=ends[1]), st.floats(1, 8), INTERVAL
        )
        for rule in (CFG, APG, ADG)
    ),
)
CORRECTIONS = st.one_of(
    st.just(NoCorrection()),
    st.builds(
        DCW, mode=st.sampled_from(DCWBand), scale=st.floats(0, 0.3), wavelet=st.sampled_from(["haar", "db4", "sym8"])
    ),
)
SAMPLERS = st.builds(
    Sampler,
    schedule=SCHEDULES,
    solver=SOLVERS,
    guidance=GUIDANCES,
    clamp=st.builds(NormClamp, threshold=st.sampled_from([0.0, 0.3, 2.0])),
    smoothing=st.builds(VelocityEMA, factor=st.sampled_from([0.0, 0.3])),
    correction=CORRECTIONS,
    clean_last=st.booleans(),
)


def generate(
    sampler: Sampler, field: Callable[..., Tensor], conditions: Conditions, null: Conditions, seeds: list[int]
) -> Tensor:
    frames = conditions.frame_mask.sum(1).tolist()
    fresh = SongNoise(song_generators(seeds), frames, channels=4)
    return sampler(field, fresh(), conditions, null, draw=fresh)


@pytest.mark.parametrize("solver", [Euler(), Heun()])
@pytest.mark.parametrize("guidance", [NoGuidance(), CFG(scale=3.0), APG(scale=3.0)])
@pytest.mark.parametrize("schedule", [Linear(steps=1), Linear(steps=7), Shifted(steps=5, shift=3.0), Turbo()])
def test_constant_velocity_is_integrated_exactly(
    solver: Solver, guidance: object, schedule: object, conditions_for: Callable[..., Conditions]
) -> None:
    noise = initial_noise((2, 5, 4), [1, 2])
    velocity = torch.randn(2, 5, 4)
    sampler = Sampler(schedule, solver, guidance)
    conditions = conditions_for([5, 5])
    made = sampler(lambda x, t, c: velocity.repeat(len(x) // 2, 1, 1), noise, conditions, conditions)
    torch.testing.assert_close(made, noise - velocity)


@pytest.mark.parametrize("solver", [Euler(), SDE(), SDE(renoise=Renoise.schedule)])
def test_the_ideal_field_ends_at_the_data(solver: Solver, conditions_for: Callable[..., Conditions]) -> None:
    data = torch.randn(2, 5, 4)

    def field(x: Tensor, t: Tensor, _: Conditions) -> Tensor:
        return (x - data) / t[:, None, None]

    schedule = Linear(steps=6) if solver == SDE() else Shifted(steps=6, shift=3.0)
    sampler = Sampler(schedule, solver, NoGuidance())
    made = generate(sampler, field, conditions_for([5, 5]), conditions_for([5, 5]), [1, 2])
    torch.testing.assert_close(made, data, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order_of_convergence(solver: Solver, order: int, conditions_for: Callable[..., Conditions]) -> None:
    start, conditions = torch.ones(1, 1, 4, dtype=torch.float64), conditions_for([1])

    def error(steps: int) -> float:
        made = Sampler(Linear(steps=steps), solver, NoGuidance())(lambda x, t, c: x, start, conditions)
        return (made - math.exp(-1)).abs().max().item()

    assert error(20) / error(40) == pytest.approx(2**order, rel=0.05)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(sampler=SAMPLERS, frames=st.lists(st.integers(1, 12), min_size=2, max_size=3))
def test_songs_are_independent_of_the_batch(
    sampler: Sampler, frames: list[int], toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    seeds = list(range(len(frames)))
    together = generate(sampler, toy, conditions_for(frames), conditions_for(frames, null=True), seeds)
    for song, length in enumerate(frames):
        alone = generate(
            sampler, toy, conditions_for([length], [song]), conditions_for([length], [song], null=True), [song]
        )
        torch.testing.assert_close(together[song, :length], alone[0], atol=1e-4, rtol=1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(sampler=SAMPLERS)
def test_evaluations_are_counted(
    sampler: Sampler, make_toy: Callable[[], Any], conditions_for: Callable[..., Conditions]
) -> None:
    toy = make_toy()
    generate(sampler, toy, conditions_for([3, 3]), conditions_for([3, 3], null=True), [1, 2])
    assert toy.rows == 2 * sampler.evaluations


def test_evaluations_of_presets() -> None:
    assert Sampler().evaluations == 100
    assert Sampler(guidance=NoGuidance()).evaluations == 50
    assert Sampler(Linear(steps=10), Heun(), CFG(scale=2.0)).evaluations == 40
    assert Sampler(Turbo(), Heun(), NoGuidance(), clean_last=True).evaluations == 15


def test_calls_share_no_state(toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]) -> None:
    sampler = Sampler(Linear(steps=4), guidance=APG(scale=5.0), smoothing=VelocityEMA(factor=0.2))
    conditions, null, noise = conditions_for([5]), conditions_for([5], null=True), torch.randn(1, 5, 4)
    assert torch.equal(sampler(toy, noise, conditions, null), sampler(toy, noise, conditions, null))


def test_steps_are_reported(toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]) -> None:
    steps: list[Step] = []
    previews: list[Tensor] = []

    def on_step(step: Step, x: Tensor, velocity: Tensor) -> None:
        steps.append(step)
        previews.append(clean_estimate(x, velocity, step.t))

    noise = torch.randn(1, 5, 4)
    made = Sampler(Linear(steps=4), guidance=NoGuidance())(toy, noise, conditions_for([5]), on_step=on_step)
    assert [(step.index, step.count, step.t, step.t_next) for step in steps] == [
        (i, 4, 1 - i / 4, 1 - (i + 1) / 4) for i in range(4)
    ]
    torch.testing.assert_close(previews[-1], made)


def test_clamp_and_smoothing(conditions_for: Callable[..., Conditions]) -> None:
    x, velocity = torch.ones(1, 4, 4), 10 * torch.ones(1, 4, 4)
    valid = conditions_for([4]).frame_mask
    torch.testing.assert_close(NormClamp(threshold=2.0)(velocity, x, valid), 2 * x)
    torch.testing.assert_close(NormClamp(threshold=20.0)(velocity, x, valid), velocity)
    assert NormClamp()(velocity, x, valid) is velocity
    torch.testing.assert_close(VelocityEMA(factor=0.1)(velocity, x), 9.1 * x)
    assert VelocityEMA(factor=0.1)(velocity, None) is velocity
    assert VelocityEMA()(velocity, x) is velocity


# Unit Gaussian data and the ideal velocity: why the wavelet correction is off by default.
@pytest.mark.parametrize(
    ("schedule", "plain", "corrected"),
    [
        (Shifted(steps=8, shift=3.0), 0.79, 0.96),
        (Linear(steps=50), 0.97, 1.69),
        (Shifted(steps=50, shift=3.0), 0.97, 2.83),
    ],
)
def test_wavelet_correction_suits_few_steps(
    schedule: object, plain: float, corrected: float, conditions_for: Callable[..., Conditions]
) -> None:
    def ideal(x: Tensor, t: Tensor, _: Conditions) -> Tensor:
        t = t[:, None, None]
        return (2 * t - 1) / (t**2 + (1 - t) ** 2) * x

    noise = initial_noise((1, 1000, 4), 0).repeat_interleave(2, dim=1)  # low band only
    conditions = conditions_for([2000])
    sampler = Sampler(schedule, guidance=NoGuidance())
    assert sampler(ideal, noise, conditions).std().item() == pytest.approx(plain, abs=0.05)
    assert replace(sampler, correction=DCW())(ideal, noise, conditions).std().item() == pytest.approx(
        corrected, abs=0.05
    )


def test_sde_without_noise_is_an_error(toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]) -> None:
    with pytest.raises(ValueError, match="fresh noise"):
        Sampler(Linear(steps=2), SDE(), NoGuidance())(toy, torch.zeros(1, 3, 4), conditions_for([3]))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"clamp.threshold=-1"):
        NormClamp(threshold=-1)
    with pytest.raises(ValueError, match=r"smoothing.factor=1.0"):
        VelocityEMA(factor=1.0)
