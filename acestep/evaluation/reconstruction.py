"""How near a reconstruction is to its original, by measures that name what is lost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio import Audio
from acestep.data.encode import TiledEncoder, fitted
from acestep.models.reconstruction import mel_distance, stereo_distance, sum_difference
from acestep.types import Autoencoder

FLOOR = 1e-8

Samples = Float[Tensor, "a s"]


def reconstruction(made: Samples, wanted: Samples, sample_rate: int) -> dict[str, float]:
    """Every measure of one song, as numbers: higher is better for ``si_sdr_db``, lower for all others."""
    found = {"si_sdr_db": si_sdr(made, wanted), "level_error_db": level_error(made, wanted)}
    distances = stereo_distance(made[None], wanted[None]) | {"mel": mel_distance(made[None], wanted[None], sample_rate)}
    found |= {f"{name}_distance": float(value) for name, value in distances.items()}
    return found | stereo_errors(made, wanted) if len(made) == 2 else found


def si_sdr(made: Samples, wanted: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al. 2019, arXiv 1811.02508), mean of channels, in dB."""
    made, wanted = (x.double() - x.double().mean(-1, keepdim=True) for x in (made, wanted))
    scale = (made * wanted).sum(-1, keepdim=True) / wanted.square().sum(-1, keepdim=True).clamp(min=FLOOR)
    target = scale * wanted
    ratio = target.square().sum(-1).clamp(min=FLOOR) / (made - target).square().sum(-1).clamp(min=FLOOR)
    return float((10 * ratio.log10()).mean())


def level_error(made: Samples, wanted: Samples) -> float:
    """Difference of the root mean squares, absolute, in dB."""
    return abs(_level(made) - _level(wanted))


def stereo_errors(made: Samples, wanted: Samples) -> dict[str, float]:
    """Absolute differences, in dB, of the balance (left over right) and the width (difference over sum)."""
    middles, sides = zip(*(sum_difference(samples[None])[0] for samples in (made, wanted)), strict=True)
    pairs = {"balance_error_db": [(x[0], x[1]) for x in (made, wanted)]}
    pairs["width_error_db"] = list(zip(sides, middles, strict=True))
    ratios = {name: [_level(one) - _level(other) for one, other in both] for name, both in pairs.items()}
    return {name: abs(one - other) for name, (one, other) in ratios.items()}


def reconstruct(autoencoder: Autoencoder, songs: Iterable[Audio]) -> Iterator[dict[str, float]]:
    """Every measure of each song's round trip through ``autoencoder``, and how long that took beside the music."""
    for song in songs:
        started = time.perf_counter()
        with torch.no_grad():
            made = autoencoder.decode(TiledEncoder()(song, autoencoder).mean)[0].float()
        taken = time.perf_counter() - started
        wanted = fitted(song, autoencoder)[:, : made.shape[-1]].to(made)
        values = reconstruction(made[:, : wanted.shape[-1]], wanted, autoencoder.sample_rate)
        yield values | {"seconds": song.seconds, "seconds_per_second": taken / song.seconds}


def _level(samples: Tensor) -> float:
    return float(10 * samples.double().square().mean().clamp(min=1e-10).log10())
