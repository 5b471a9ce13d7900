"""Conversions between seconds, samples and latent frames, at rates given by the autoencoder."""

from __future__ import annotations


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Whole samples in ``seconds``, truncated as upstream does (``conditioning_target.py``).

    Rounded to 3 decimals before, against floating-point error, so that frames to seconds and back is exact.
    """
    return int(round(seconds * sample_rate, 3))


def seconds_to_frames(seconds: float, sample_rate: int, hop: int) -> int:
    """Whole latent frames in ``seconds``; one frame is ``hop`` samples."""
    return seconds_to_samples(seconds, sample_rate) // hop


def frames_to_seconds(frames: int, sample_rate: int, hop: int) -> float:
    """Duration of ``frames`` latent frames."""
    return frames * hop / sample_rate
