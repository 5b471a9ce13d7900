"""CachedDiT computes the network's velocity, with caches, shared branches, buffers and the compiler."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from networks import TINY, compiled_errors, network, two_songs
from torch import nn

from acestep.flow import APG, CFG, Euler, Heun, Linear, Sampler
from acestep.models import cached_dit
from acestep.models.acestep import AceStep
from acestep.models.dit import Padding
from acestep.types import PairField

TIME = torch.full((2,), 0.3)


@pytest.mark.parametrize("rows", [64, 1024])
@pytest.mark.parametrize("frames", [33, 150])
@pytest.mark.parametrize("padding", Padding)
@torch.no_grad()
def test_both_velocities_equal_the_network(
    padding: Padding, frames: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_dit, "CPU_ROWS", rows)
    model = network(replace(TINY, padding=padding))
    conditions, x_t = two_songs(frames)
    field, null = model.cached_velocity(), model.null(conditions)
    assert isinstance(field, PairField)
    for other in (null, replace(conditions, states=conditions.states.flip(1))):
        for _ in range(2):  # computed, then cached
            for made, wanted in zip(field.pair(x_t, TIME, conditions, other), (conditions, other), strict=True):
                expected = model.velocity(x_t, TIME, wanted)
                torch.testing.assert_close(made, expected, atol=3e-5, rtol=1e-4)
                torch.testing.assert_close(field(x_t, TIME, wanted), expected, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", [Sampler(Linear(steps=4), Euler(), APG()), Sampler(Linear(steps=3), Heun(), CFG())])
def test_songs_equal_those_of_the_network(sampler: Sampler) -> None:
    model = network()
    conditions, noise = two_songs(50)
    null = model.null(conditions)
    made = sampler(model.cached_velocity(), noise, conditions, null)
    torch.testing.assert_close(made, sampler(model.velocity, noise, conditions, null), atol=1e-3, rtol=1e-3)


def test_keys_are_computed_once_and_the_null_condition_needs_no_queries() -> None:
    model = network()
    conditions, noise = two_songs(50)
    calls: dict[str, list[int]] = {"k_proj": [], "q_proj": []}
    cross = model.decoder.layers[1].cross_attn
    for name in calls:
        getattr(cross, name).register_forward_pre_hook(
            lambda _, inputs, name=name: calls[name].append(inputs[0][..., 0].numel())
        )
    sampler = Sampler(Linear(steps=5), Euler(), CFG(scale=3.0, t_min=0.5))
    sampler(model.cached_velocity(), noise, conditions, model.null(conditions))
    assert len(calls["k_proj"]) == 2  # the condition's and the null token's
    # Five steps of two songs of 25 patches, guided or not, and the null token of both.
    assert sum(calls["q_proj"]) == 5 * 2 * 25 + 2


def test_caches_are_not_shared_between_generations() -> None:
    model: AceStep = network()
    conditions, x_t = two_songs(33)
    with torch.no_grad():
        before = model.cached_velocity()(x_t, TIME, conditions)
        model.decoder.layers[0].cross_attn.v_proj.weight.mul_(2)
        torch.testing.assert_close(
            model.cached_velocity()(x_t, TIME, conditions), model.velocity(x_t, TIME, conditions), atol=3e-5, rtol=1e-4
        )
        assert (model.cached_velocity()(x_t, TIME, conditions) - before).abs().max() > 1e-3


@torch.no_grad()
def test_buffers_fit_any_length_and_any_projection() -> None:
    model = network()
    mlp = model.decoder.layers[1].mlp
    mlp.gate_proj = nn.Sequential(mlp.gate_proj)  # as an adapter replaces it
    field = model.cached_velocity()
    for frames in (33, 150, 33):
        conditions, x_t = two_songs(frames, seed=frames)
        made, expected = field(x_t, TIME, conditions), model.velocity(x_t, TIME, conditions)
        torch.testing.assert_close(made, expected, atol=3e-5, rtol=1e-4)


@torch.no_grad()
def test_tensors_passed_to_hooks_are_not_overwritten() -> None:
    model = network()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        seen.extend((x, x.clone()) for x in (*inputs, output) if isinstance(x, torch.Tensor))

    conditions, x_t = two_songs(33)
    field, null = model.cached_velocity(), model.null(conditions)
    unseen = field.pair(x_t, TIME, conditions, null)
    for module in model.decoder.modules():
        module.register_forward_hook(record)
    for one, other in zip(field.pair(x_t, TIME, conditions, null), unseen, strict=True):
        torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)
    assert len(seen) > 50
    assert all(torch.equal(tensor, copy) for tensor, copy in seen)


@torch.no_grad()
def test_half_precision_is_as_accurate_as_the_network() -> None:
    model = network()
    conditions, x_t = two_songs(150)
    exact = model.velocity(x_t, TIME, conditions)
    model.bfloat16()
    halves = replace(conditions, states=conditions.states.bfloat16(), context=conditions.context.bfloat16())
    errors = [
        (made.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        for made in (field(x_t.bfloat16(), TIME, halves) for field in (model.cached_velocity(), model.velocity))
    ]
    assert errors[0] < 1.2 * errors[1] < 0.05


@torch.no_grad()
def test_autocast_is_respected() -> None:
    model = network()
    conditions, x_t = two_songs(33)
    with torch.autocast("cpu", torch.bfloat16):
        made, expected = model.cached_velocity()(x_t, TIME, conditions), model.velocity(x_t, TIME, conditions)
    torch.testing.assert_close(made.float(), expected.float(), atol=0.2, rtol=0.1)
    assert (made - model.velocity(x_t, TIME, conditions)).abs().max() > 1e-3  # half precision was used


def test_buffers_of_inference_mode_work_outside_of_it() -> None:
    model = network()
    conditions, x_t = two_songs(33)
    field = model.cached_velocity()
    with torch.inference_mode():
        expected = field(x_t, TIME, conditions).clone()
    assert torch.equal(field(x_t, TIME, conditions), expected)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_songs_of_any_length_equal_the_network() -> None:
    # In a process without the tests' shape checks, which the compiler does not support.
    batches = [(2, 50), (2, 150), (2, 34), (1, 34), (3, 90), (4, 60), (1, 70), (5, 100)]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        errors, programs = pool.submit(compiled_errors, batches).result()
    assert max(errors) < 1e-4
    assert programs[-1] == programs[-2]  # one song and several, of any length, are compiled by then
