"""Conversions between seconds, samples and frames."""

from __future__ import annotations

import pytest

from acestep.units import frames_to_seconds, seconds_to_frames, seconds_to_samples


@pytest.mark.parametrize(("sample_rate", "hop"), [(48_000, 1_920), (44_100, 2_048)])
def test_frames_to_seconds_and_back_is_exact(sample_rate: int, hop: int) -> None:
    for frames in range(1, 15_001):
        assert seconds_to_frames(frames_to_seconds(frames, sample_rate, hop), sample_rate, hop) == frames


def test_incomplete_samples_and_frames_are_truncated() -> None:
    assert seconds_to_samples(0.99999, 100) == 99
    assert seconds_to_frames(0.119, 48_000, 1_920) == 2
