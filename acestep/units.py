"""Conversions between seconds, samples and latent frames. Rates come from the autoencoder, never from here."""

from __future__ import annotations


def seconds_to_samples(seconds: float, sample_rate: int) -> int:
    """Whole samples in ``seconds``, truncated as upstream does (``conditioning_target.py``).

    What floating point leaves below a whole sample counts as whole, so that frames to seconds and back is exact.
    """
    return int(round(seconds * sample_rate, 3))


def seconds_to_frames(seconds: float, sample_rate: int, hop: int) -> int:
    """Whole latent frames in ``seconds``; one frame is ``hop`` samples."""
    return seconds_to_samples(seconds, sample_rate) // hop


def frames_to_seconds(frames: int, sample_rate: int, hop: int) -> float:
    """Seconds that ``frames`` latent frames last."""
    return frames * hop / sample_rate
