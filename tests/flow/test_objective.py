from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from acestep.flow.noise import normal, song_generators, uniform
from acestep.flow.objective import CleanError, ConditionDropout, ConditionParts, Flat, FlowMatching, MinSNR
from acestep.flow.path import noised
from acestep.flow.timesteps import Uniform
from acestep.types import Conditions

FRAMES = [6, 9, 4]


@pytest.fixture
def batch(conditions_for: Callable[..., Conditions]) -> tuple[Tensor, Conditions, Conditions]:
    x0 = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0))
    return x0, conditions_for(FRAMES), conditions_for(FRAMES, null=True)


@settings(max_examples=20)
@given(rate=st.sampled_from([0.0, 0.05, 0.15, 0.3, 1.0]), seed=st.integers(0, 1000))
def test_dropout_rate(rate: float, seed: int) -> None:
    songs = 20_000
    empty = Conditions(
        torch.ones(songs, 1, 1), torch.ones(songs, 1).bool(), torch.ones(songs, 1, 2), torch.ones(songs, 1).bool()
    )
    null = replace(empty, states=torch.zeros(songs, 1, 1))
    kept, dropped = ConditionDropout(rate=rate)(empty, null, uniform(songs, torch.Generator().manual_seed(seed)))
    bound = 5 * (songs * rate * (1 - rate)) ** 0.5  # five standard deviations of the binomial
    assert abs(dropped.sum().item() - songs * rate) <= bound
    assert torch.equal(kept.states[:, 0, 0] == 0, dropped)
    assert torch.equal(kept.context, empty.context)


RATES = {"text": 0.1, "lyrics": 0.3, "timbre": 0.5, "context": 0.2}


def test_parts_are_dropped_independently_at_their_rates() -> None:
    songs = 20_000
    full = Conditions(
        torch.ones(songs, 3, 1), torch.ones(songs, 3).bool(), torch.ones(songs, 1, 2), torch.ones(songs, 1).bool()
    )
    null = replace(full, states=torch.zeros(songs, 3, 1))
    rows = {name: torch.arange(3).expand(songs, 3) == row for row, name in enumerate(("lyrics", "timbre", "text"))}
    parts = ConditionParts(rows, torch.zeros(songs, 1, 2))
    seen = {}

    def field(x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        seen["conditions"] = conditions
        return x_t

    objective = FlowMatching(dropout=ConditionDropout(rate=0.15, **RATES))
    generator = torch.Generator().manual_seed(0)
    loss = objective(field, torch.zeros(songs, 1, 2), full, null, generator, parts=parts)
    for name, rate in {"all": 0.15, **RATES}.items():
        bound = 5 * (songs * rate * (1 - rate)) ** 0.5
        assert abs(loss.dropped[name].sum().item() - songs * rate) <= bound, name
    both = (loss.dropped["text"] & loss.dropped["lyrics"]).float().mean().item()
    assert both == pytest.approx(0.03, abs=0.006)
    states, context = seen["conditions"].states[..., 0], seen["conditions"].context[:, 0, 0]
    for row, name in enumerate(("lyrics", "timbre", "text")):
        assert torch.equal(states[:, row] == 0, loss.dropped[name] | loss.dropped["all"]), name
    assert torch.equal(context == 0, loss.dropped["context"])


def test_dropping_parts_needs_their_positions(
    batch: tuple[Tensor, Conditions, Conditions], toy: Callable[..., Tensor]
) -> None:
    x0, conditions, null = batch
    with pytest.raises(ValueError, match=r"objective.dropout.lyrics"):
        FlowMatching(dropout=ConditionDropout(lyrics=0.1))(toy, x0, conditions, null, song_generators([1, 2, 3]))


def test_the_true_velocity_has_zero_loss(batch: tuple[Tensor, Conditions, Conditions]) -> None:
    x0, conditions, null = batch

    def field(x_t: Tensor, t: Tensor, _: Conditions) -> Tensor:
        return (x_t - x0) / t[:, None, None]

    loss = FlowMatching()(field, x0, conditions, null, torch.Generator().manual_seed(0))
    assert loss.mean < 1e-10
    assert (loss.per_song < 1e-10).all()


def test_draws_in_the_documented_order(
    batch: tuple[Tensor, Conditions, Conditions], toy: Callable[..., Tensor]
) -> None:
    x0, conditions, null = batch
    objective = FlowMatching(timesteps=Uniform(), dropout=ConditionDropout(rate=0.5))
    loss = objective(toy, x0, conditions, null, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    t = torch.rand(3, generator=generator)
    dropped = torch.rand(3, generator=generator) < 0.5
    noise = torch.randn(x0.shape, generator=generator)
    again = objective.evaluate_at(toy, x0, conditions.where(dropped, null), t, noise)
    assert torch.equal(loss.t, t)
    assert torch.equal(loss.dropped["all"], dropped)
    assert not again.dropped
    assert torch.equal(loss.per_song, again.per_song)
    assert torch.equal(loss.mean, again.mean)


def test_padding_is_ignored(batch: tuple[Tensor, Conditions, Conditions], toy: Callable[..., Tensor]) -> None:
    x0, conditions, _ = batch
    t, noise = torch.tensor([0.2, 0.5, 0.8]), torch.randn(x0.shape)
    loss = FlowMatching().evaluate_at(toy, x0, conditions, t, noise)
    padding = ~conditions.frame_mask[..., None]
    other = FlowMatching().evaluate_at(toy, x0 + 3 * padding, conditions, t, noise - 2 * padding)
    torch.testing.assert_close((loss.total, loss.per_song), (other.total, other.per_song))
    assert loss.count == other.count
    assert other.count == sum(FRAMES) * x0.shape[-1]
    torch.testing.assert_close(loss.mean, (loss.per_song * torch.tensor(FRAMES)).sum() / sum(FRAMES))


def test_unmasked_is_the_plain_mean(batch: tuple[Tensor, Conditions, Conditions], toy: Callable[..., Tensor]) -> None:
    x0, conditions, _ = batch
    t, noise = torch.tensor([0.2, 0.5, 0.8]), torch.randn(x0.shape)
    loss = FlowMatching(masked=False).evaluate_at(toy, x0, conditions, t, noise)
    expected = (toy(noised(x0, noise, t), t, conditions) - (noise - x0)).square().mean()
    torch.testing.assert_close(loss.mean, expected)


def test_totals_and_counts_add_up(conditions_for: Callable[..., Conditions], toy: Callable[..., Tensor]) -> None:
    """With a generator per song, a song counts alike in one batch, in micro-batches and on several ranks."""
    x0, channels = torch.randn(3, max(FRAMES), 64), 64
    conditions, null = (conditions_for(FRAMES, channels=channels, null=null) for null in (False, True))
    objective = FlowMatching(dropout=ConditionDropout(rate=0.5))
    whole = objective(toy, x0, conditions, null, song_generators([7, 8, 9]))
    parts = [
        objective(
            toy,
            x0[song : song + 1, :length],
            conditions_for([length], [song], channels),
            conditions_for([length], [song], channels, null=True),
            song_generators([7 + song]),
        )
        for song, length in enumerate(FRAMES)
    ]
    torch.testing.assert_close(whole.total, sum(part.total for part in parts))
    torch.testing.assert_close(whole.count, sum(part.count for part in parts))
    torch.testing.assert_close(whole.per_song, torch.cat([part.per_song for part in parts]))


def test_gradient_reaches_the_field(batch: tuple[Tensor, Conditions, Conditions]) -> None:
    x0, conditions, null = batch
    weight = torch.ones((), requires_grad=True)
    loss = FlowMatching()(lambda x, t, c: weight * x, x0, conditions, null, torch.Generator().manual_seed(0))
    loss.mean.backward()
    assert weight.grad is not None
    assert not loss.per_song.requires_grad


def test_times_and_noise_are_drawn_in_float32_whatever_the_data(batch: tuple[Tensor, Conditions, Conditions]) -> None:
    x0, conditions, null = batch
    seen = []

    def field(x_t: Tensor, t: Tensor, _: Conditions) -> Tensor:
        seen.extend([x_t.dtype, t.dtype])
        return x_t.bfloat16()

    loss = FlowMatching()(field, x0.bfloat16(), conditions, null, torch.Generator().manual_seed(0))
    assert seen == [torch.float32, torch.float32]
    assert loss.total.dtype == torch.float32


def test_weightings() -> None:
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert Flat()(t).tolist() == [1, 1, 1, 1]
    assert CleanError()(t).tolist() == [0, 0.0625, 0.25, 1]
    torch.testing.assert_close(MinSNR()(t), torch.tensor([0, 5 / 9, 1, 1]))


def test_weights_change_the_total_only(
    batch: tuple[Tensor, Conditions, Conditions], toy: Callable[..., Tensor]
) -> None:
    x0, conditions, _ = batch
    t, noise = torch.tensor([0.2, 0.5, 0.8]), normal(x0.shape, torch.Generator().manual_seed(1))
    flat = FlowMatching(masked=False).evaluate_at(toy, x0, conditions, t, noise)
    clean = FlowMatching(masked=False, weighting=CleanError()).evaluate_at(toy, x0, conditions, t, noise)
    assert torch.equal(flat.per_song, clean.per_song)
    torch.testing.assert_close(clean.mean, (flat.per_song * t.square()).mean())


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"objective.dropout.rate=1.5"):
        ConditionDropout(rate=1.5)
    with pytest.raises(ValueError, match=r"weighting.gamma=0"):
        MinSNR(gamma=0)
