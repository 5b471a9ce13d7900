from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.flow.schedule import Custom, Linear, Shifted, Turbo, TurboCustom

# Upstream's 8-step tables, to the digits that it documents.
TURBO = {
    1.0: [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0],
    2.0: [1, 0.9333, 0.8571, 0.7692, 0.6667, 0.5455, 0.4, 0.2222, 0],
    3.0: [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0],
}


@given(steps=st.integers(1, 200), shift=st.floats(0.1, 10))
def test_shifted_decreases_from_noise_to_data(steps: int, shift: float) -> None:
    times = Shifted(steps=steps, shift=shift)()
    assert times.dtype == torch.float32
    assert len(times) == steps + 1
    assert 1 - 1e-6 <= times[0] <= 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()


@given(steps=st.integers(1, 200))
def test_shift_one_is_linear(steps: int) -> None:
    assert torch.equal(Shifted(steps=steps, shift=1.0)(), Linear(steps=steps)())


def test_custom_is_verbatim_and_optionally_closed() -> None:
    assert Custom(timesteps=[1.0, 0.5])().tolist() == [1.0, 0.5]
    assert Custom(timesteps=[1.0, 0.5], close=True)().tolist() == [1.0, 0.5, 0.0]
    assert Custom(timesteps=[0.5, 0.0], close=True)().tolist() == [0.5, 0.0]
    assert Custom(timesteps=[0.5], close=True)().tolist() == [0.5, 0.0]


@pytest.mark.parametrize(("shift", "nearest"), [(1.0, 1.0), (1.4, 1.0), (2.0, 2.0), (2.4, 2.0), (3.0, 3.0), (9.0, 3.0)])
def test_turbo_tables(shift: float, nearest: float) -> None:
    torch.testing.assert_close(Turbo(shift=shift)(), torch.tensor(TURBO[nearest]), atol=5e-5, rtol=0)


def test_turbo_custom_rounds_and_closes() -> None:
    times = TurboCustom(timesteps=[0.97, 0.76, 0.5, 0.28, 0.0])()
    torch.testing.assert_close(times, torch.tensor([0.9545, 0.7692, 0.5, 0.3, 0]), atol=5e-5, rtol=0)
    assert len(TurboCustom(timesteps=[0.5] * 30)()) == 21


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Linear, {"steps": 0}, r"schedule.steps=0"),
        (Shifted, {"steps": 0}, r"schedule.steps=0"),
        (Shifted, {"shift": 0.0}, r"schedule.shift=0.0"),
        (Turbo, {"shift": -1.0}, r"schedule.shift=-1.0"),
        (Custom, {"timesteps": []}, r"schedule.timesteps=\[\]"),
        (Custom, {"timesteps": [0.5, 0.7]}, "none rising"),
        (Custom, {"timesteps": [1.5, 0.7]}, "need times from 1"),
        (Custom, {"timesteps": [0.5]}, "at least two"),
        (TurboCustom, {"timesteps": [0.0]}, "one above 0"),
    ],
)
def test_refusals(cls: type, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)
