from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acestep.flow import Euler, Heun, Linear, Sampler
from acestep.flow.guidance import (
    ADG,
    APG,
    CFG,
    Guidance,
    GuidanceState,
    GuidedField,
    GuidedVelocity,
    NoGuidance,
    NormAxis,
    Predictions,
)
from acestep.flow.noise import NoiseSource
from acestep.flow.solvers import Evaluate, Solver, Step, StepResult
from acestep.types import Conditions

LINEAR = Linear(steps=4)
RULES: list[type] = [CFG, APG, ADG]
VARIANTS = [
    CFG(scale=3.0),
    APG(scale=3.0),
    APG(scale=3.0, eta=0.5, momentum=0.3, axis=NormAxis.channels),
    APG(scale=3.0, norm_threshold=0.0),
    ADG(scale=3.0),
    ADG(scale=3.0, max_angle=3.14 / 3, restore_norm=True),
    ADG(scale=3.0, max_angle=math.inf),
]


def pair(seed: int, t: float = 0.5, frames: int = 7) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    conditional, null, x_t = (torch.randn(2, frames, 8, generator=generator) for _ in range(3))
    return Predictions(conditional, null, x_t, t, torch.ones(2, frames, dtype=torch.bool))


@pytest.mark.parametrize("rule", RULES)
def test_scale_one_is_the_conditional_field_bit_for_bit(
    rule: type, toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    conditions, x = conditions_for([5, 5]), torch.randn(2, 5, 4)
    for null in (None, conditions_for([5, 5], null=True)):
        guided, momentum = GuidedField(toy, rule(scale=1.0), conditions, null)(x, 0.5)
        assert torch.equal(guided, toy(x, torch.full((2,), 0.5), conditions))
        assert momentum is None


@pytest.mark.parametrize("guidance", VARIANTS, ids=str)
@given(seed=st.integers(0, 99), frames=st.integers(1, 9), extra=st.integers(1, 5))
def test_guidance_ignores_padding(guidance: Guidance, seed: int, frames: int, extra: int) -> None:
    alone = pair(seed, frames=frames)
    junk = torch.full((2, extra, 8), 3.0)
    padded = Predictions(
        torch.cat([alone.conditional, 2 * junk], 1),
        torch.cat([alone.null, -junk], 1),
        torch.cat([alone.x_t, junk], 1),
        alone.t,
        torch.cat([alone.valid, torch.zeros(2, extra, dtype=torch.bool)], 1),
    )
    momentum = padded_momentum = None
    for _ in range(2):
        expected, momentum = guidance(alone, momentum)
        actual, padded_momentum = guidance(padded, padded_momentum)
        torch.testing.assert_close(actual[:, :frames], expected)


@given(scale=st.floats(1.01, 20), seed=st.integers(0, 99))
def test_apg_with_neutral_settings_is_cfg(scale: float, seed: int) -> None:
    plain = APG(scale=scale, momentum=0.0, norm_threshold=0.0, eta=1.0)
    torch.testing.assert_close(plain(pair(seed))[0], CFG(scale=scale)(pair(seed))[0])


@given(scale=st.floats(1.01, 20), threshold=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_apg_update_is_orthogonal_and_limited(scale: float, threshold: float, seed: int) -> None:
    given_pair = pair(seed)
    push = APG(scale=scale, norm_threshold=threshold)(given_pair)[0] - given_pair.conditional
    assert (push.norm(dim=1) <= (scale - 1) * threshold * (1 + 1e-4) + 1e-4).all()
    across = (push * given_pair.conditional).sum(1) / given_pair.conditional.norm(dim=1)
    assert (across.abs() <= 1e-4 * scale).all()


def test_negative_momentum_damps_repeated_differences() -> None:
    rule, same = APG(scale=3.0), pair(0)
    first = rule(same)
    second = rule(same, first[1])
    torch.testing.assert_close(second[1], 0.25 * (same.conditional - same.null))
    assert rule.corrector == CFG(scale=3.0)


def test_equal_predictions_are_unchanged() -> None:
    same = pair(0)
    same = Predictions(same.conditional, same.conditional, same.x_t, same.t, same.valid)
    for rule in VARIANTS:
        torch.testing.assert_close(rule(same)[0], same.conditional, atol=0.02, rtol=0)  # ADG keeps angles off 0


def test_adg_at_zero_is_cfg() -> None:
    assert torch.equal(ADG(scale=3.0)(pair(0, t=0.0))[0], CFG(scale=3.0)(pair(0, t=0.0))[0])


@pytest.mark.parametrize("rule", RULES)
def test_interval_includes_both_ends_in_float32(rule: type) -> None:
    guidance = rule(t_min=0.2, t_max=0.8)
    inside = torch.tensor([0.2, 0.5, 0.8]).tolist()
    assert all(guidance.active(t) for t in inside)
    assert not any(guidance.active(t) for t in (0.1999, 0.8001))


def test_outside_the_interval_the_velocity_is_conditional(
    toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    conditions, null, x = conditions_for([5]), conditions_for([5], null=True), torch.randn(1, 5, 4)
    field = GuidedField(toy, APG(scale=4.0, t_max=0.5), conditions, null)
    remembered = torch.ones(1, 5, 4)
    guided, momentum = field(x, 0.9, remembered)
    assert torch.equal(guided, toy(x, torch.tensor([0.9]), conditions))
    assert momentum is remembered
    assert not torch.equal(field(x, 0.4)[0], toy(x, torch.tensor([0.4]), conditions))


def test_guidance_needs_null_conditions(toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]) -> None:
    with pytest.raises(ValueError, match="needs the null conditions"):
        GuidedField(toy, CFG(scale=2.0), conditions_for([5]), None)(torch.zeros(1, 5, 4), 0.5)


def test_no_guidance_is_its_own_corrector() -> None:
    rule = NoGuidance()
    assert not rule.active(0.5)
    assert rule.corrector is rule
    assert rule(pair(0))[0] is not None


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (CFG, {"scale": 0.5}, r"guidance.scale=0.5: need >= 1 \(1 switches guidance off\)"),
        (APG, {"scale": math.inf}, r"guidance.scale=inf"),
        (CFG, {"t_min": 0.6, "t_max": 0.5}, r"guidance.t_min=0.6"),
        (APG, {"momentum": -1.0}, r"guidance.momentum=-1.0"),
        (APG, {"norm_threshold": -1.0}, r"guidance.norm_threshold=-1.0"),
        (ADG, {"max_angle": 0.0}, r"guidance.max_angle=0.0"),
    ],
)
def test_refusals(cls: type, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)


@dataclass(frozen=True, kw_only=True)
class PlainCFG(Guidance):
    """A rule outside the package: only ``__call__`` is defined."""

    scale: float

    def __call__(self, predictions: Predictions, state: GuidanceState = None) -> GuidedVelocity:
        return predictions.null + self.scale * (predictions.conditional - predictions.null), state


@dataclass(frozen=True, kw_only=True)
class PlainEuler(Solver):
    """A solver outside the package: only ``__call__`` is defined."""

    def __call__(
        self, x_t: Tensor, velocity: Tensor, step: Step, evaluate: Evaluate, draw: NoiseSource | None
    ) -> StepResult:
        return StepResult(x_t - velocity * (step.t - step.t_next), step.t_next, velocity)


@pytest.mark.parametrize(
    ("own", "built_in"),
    [
        (
            Sampler(Linear(steps=4), PlainEuler(), PlainCFG(scale=3.0)),
            Sampler(Linear(steps=4), Euler(), CFG(scale=3.0)),
        ),
        (Sampler(Linear(steps=4), Heun(), PlainCFG(scale=3.0)), Sampler(Linear(steps=4), Heun(), CFG(scale=3.0))),
    ],
)
def test_a_user_defined_rule_and_solver_work_like_built_in_ones(
    own: Sampler, built_in: Sampler, toy: Callable[..., Tensor], conditions_for: Callable[..., Conditions]
) -> None:
    conditions, null, noise = conditions_for([5]), conditions_for([5], null=True), torch.randn(1, 5, 4)
    assert torch.equal(own(toy, noise, conditions, null), built_in(toy, noise, conditions, null))
    assert own.evaluations == built_in.evaluations
