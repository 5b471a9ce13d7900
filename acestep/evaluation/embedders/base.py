"""What turns a waveform into vectors, and the rules all of them share: fixed windows, unit vectors, one mean.

An embedder hears the whole song in windows at fixed places. Libraries that crop at random score a different excerpt of
the same song every time (LAION-AI/CLAP issue 166) and 4 % of a four-minute one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.types import Song


class MissingWeightsError(ValueError):
    """A scorer's weights or library are not on this machine; the message says where they come from."""


class CollapsedError(ValueError):
    """An embedder that gives everything the same vector: its scores would mean nothing."""


class Embedder(Protocol):
    """Audio and, for CLAP-style models, text to unit vectors in one space.

    ``name`` stands in files and tables; ``fingerprint`` hashes the weights and the preprocessing; ``unrelated`` are
    words of its domain that a healthy one tells apart.
    """

    name: str
    fingerprint: str
    unrelated: Sequence[Song]

    def audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """One unit vector for each window, in order of time."""
        ...

    def text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """One unit vector for each song's words."""
        ...


def mono(audio: Audio, sample_rate: int) -> Float[Tensor, " s"]:
    """Channel mean at ``sample_rate``, float32."""
    samples = audio.samples.to(torch.float32).mean(0)
    if audio.sample_rate == sample_rate:
        return samples
    return torchaudio.functional.resample(samples, audio.sample_rate, sample_rate)


def cut_windows(samples: Float[Tensor, " s"], length: int, hop: int) -> Float[Tensor, "w s2"]:
    """Whole windows from the first sample on; a tail shorter than a window is left out.

    Padding it would make distances between sets depend on how long the songs are: of a 10 s clip cut with a hop of 1 s
    nine windows in ten would hold silence. A song shorter than one window is repeated a whole number of times and then
    padded with zeros, as LAION does it (``get_audio_features``, ``repeatpad``).
    """
    if samples.ndim != 1 or samples.numel() == 0:
        raise ValueError(f"cannot embed a waveform of shape {tuple(samples.shape)}: need one channel and a sample")
    if len(samples) < length:
        repeated = samples.repeat(length // len(samples))
        return F.pad(repeated, (0, length - len(repeated)))[None]
    return samples.unfold(0, length, hop)


def pooled(windows: Float[Tensor, "w d"]) -> Float[Tensor, " d"]:
    """A song's vector: mean of its windows' unit vectors, brought back to length 1."""
    return F.normalize(F.normalize(windows, dim=-1).mean(0), dim=-1)


def mean_cosine(vectors: Float[Tensor, "n d"]) -> float:
    """Mean over all pairs of different unit vectors."""
    n = len(vectors)
    return float((vectors.sum(0).square().sum() - vectors.square().sum()) / max(n * (n - 1), 1))


def check_collapse(vectors: Float[Tensor, "n d"], what: str, limit: float) -> None:
    """Refuse an embedder whose vectors for distinct inputs point one way.

    Args:
        vectors: unit vectors of distinct recordings or unrelated captions; fewer than 16 decide nothing.
        what: the embedder and the kind of input, for the message.
        limit: mean pairwise cosine above which it counts as collapsed. A converted checkpoint seen in the wild gave
            0.92 between tracks, healthy ones 0.3 to 0.55.
    """
    if len(vectors) < 16:
        return
    cosine = mean_cosine(vectors)
    if cosine > limit:
        raise CollapsedError(
            f"{what}: mean cosine between {len(vectors)} distinct inputs is {cosine:.3f}, above {limit}; the embedder "
            "has collapsed: check that its checkpoint fits the library version"
        )
