from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from acestep.flow import APG, SDE
from acestep.flow.dcw import DCW, DCWBand, NoCorrection
from acestep.flow.guidance import NormAxis
from acestep.flow.solvers import Renoise
from acestep.flow.wavelets import MAX_ORDER, low_band, scaling_filter

NAMES = ["haar", *(f"db{n}" for n in range(1, MAX_ORDER + 1)), *(f"sym{n}" for n in range(2, MAX_ORDER + 1))]


@pytest.mark.parametrize("name", NAMES)
def test_filters_are_orthonormal_and_of_full_order(name: str) -> None:
    taps = torch.tensor(scaling_filter(name), dtype=torch.float64)
    order = len(taps) // 2
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-12)
    for shift in range(order):
        product = (taps[2 * shift :] * taps[: len(taps) - 2 * shift]).sum().item()
        assert product == pytest.approx(float(shift == 0), abs=1e-9)
    # As many vanishing moments as the order: the low-pass has that many zeros at the highest frequency.
    signs = torch.tensor([(-1.0) ** k for k in range(len(taps))], dtype=torch.float64)
    places = torch.linspace(-1, 1, len(taps), dtype=torch.float64)
    for power in range(min(order, 6)):
        assert (signs * taps * places**power).sum().item() == pytest.approx(0, abs=1e-8)


def test_published_coefficients() -> None:
    """Daubechies' tables 6.1 and 8.1 (to the orientation and scale of the field's usual tables)."""
    db2 = [0.4829629131445341, 0.8365163037378079, 0.2241438680420134, -0.1294095225512604]
    sym4 = [
        *(0.0322231006040427, -0.0126039672620378, -0.0992195435768472, 0.2978577956052774),
        *(0.8037387518059161, 0.4976186676320155, -0.0296355276459985, -0.0757657147893407),
    ]
    assert scaling_filter("db2") == pytest.approx(db2, abs=1e-12)
    assert scaling_filter("sym4") == pytest.approx(sym4, abs=1e-11)


@given(name=st.sampled_from(NAMES), frames=st.integers(1, 60), seed=st.integers(0, 99))
def test_low_band_is_a_projection_that_padding_does_not_change(name: str, frames: int, seed: int) -> None:
    x = torch.randn(2, frames, 3, generator=torch.Generator().manual_seed(seed))
    low = low_band(x, name)
    padded = low_band(torch.nn.functional.pad(x, (0, 0, 0, 4)), name)
    torch.testing.assert_close(low, padded[:, :frames], atol=1e-5, rtol=1e-5)
    energy = (low * x).sum((1, 2))  # what an orthogonal projection keeps
    assert (energy >= -1e-5).all()
    assert (energy <= x.square().sum((1, 2)) * (1 + 1e-5)).all()


@given(frames=st.integers(1, 30), t=st.floats(0, 1), seed=st.integers(0, 99))
def test_haar_means_of_pairs(frames: int, t: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, clean = torch.randn(2, frames, 3, generator=generator), torch.randn(2, frames, 3, generator=generator)
    even = frames // 2 * 2
    difference = x - clean
    mean = difference[:, :even].reshape(2, -1, 2, 3).mean(2).repeat_interleave(2, 1)
    low = torch.cat([mean, difference[:, even:] / 2], 1)
    expected = x + t * 0.3 * low + (1 - t) * 0.2 * (difference - low)
    torch.testing.assert_close(DCW(scale=0.3, high_scale=0.2)(x, clean, t, all_valid(x)), expected)


@pytest.mark.parametrize("mode", DCWBand)
def test_modes(mode: DCWBand) -> None:
    x, clean = torch.randn(2, 8, 3), torch.zeros(2, 8, 3)
    low = low_band(x, "haar")
    expected = {
        DCWBand.low: x + 0.25 * 0.1 * low,
        DCWBand.high: x + 0.75 * 0.1 * (x - low),
        DCWBand.double: x + 0.25 * 0.1 * low + 0.75 * 0.4 * (x - low),
        DCWBand.pix: x + 0.1 * x,
    }[mode]
    torch.testing.assert_close(DCW(mode=mode, scale=0.1, high_scale=0.4)(x, clean, 0.25, all_valid(x)), expected)


def test_enums_accept_their_names() -> None:
    assert DCW(mode="low") == DCW(mode=DCWBand.low)
    assert APG(axis="channels") == APG(axis=NormAxis.channels)
    assert SDE(renoise="schedule") == SDE(renoise=Renoise.schedule)


def test_dtype_is_kept_and_no_correction_is_identity() -> None:
    x = torch.randn(1, 6, 3).bfloat16()
    assert DCW()(x, x + 1, 0.5, all_valid(x)).dtype == torch.bfloat16
    assert NoCorrection()(x, x + 1, 0.5, all_valid(x)) is x


@pytest.mark.parametrize("name", ["", "db0", "db21", "sym1", "sym21", "coif1", "db02", "Haar"])
def test_unknown_wavelets(name: str) -> None:
    with pytest.raises(ValueError, match=f"correction.wavelet={name}: unknown"):
        DCW(wavelet=name)


def all_valid(x: Tensor) -> Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)
