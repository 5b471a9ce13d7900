"""Base classes of feature extractors and embedders, and what embedders share: fixed windows, unit vectors, one mean.

An embedder takes the whole song in windows at fixed positions. Libraries that crop at random score a different excerpt
of the same song every time (LAION-AI/CLAP issue 166) and 4 % of a four-minute one.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar, cast

import torch
import torch.nn.functional as F
import torchaudio.functional
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.hashing import digest
from acestep.songs import Song

Features = dict[str, Tensor]


class MissingWeightsError(ValueError):
    """Weights or a library are not on this machine; the message names their source."""


class CollapsedError(ValueError):
    """An embedder that maps every input to nearly the same vector: its scores would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """Turns audio into the tensors that metrics read.

    Extractors with the same fingerprint share their files in :class:`~acestep.evaluation.embedders.cache.FeatureCache`.

    Attributes:
        thread_safe: whether several threads may call :meth:`extract` at once.
    """

    thread_safe: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name in folders and tables."""
        return type(self).__name__

    @property
    def fingerprint(self) -> str:
        """Hash of everything but the audio that features depend on: weights, preprocessing, options.

        By default it covers the class's source and its fields. Override it where :meth:`extract` uses weights or code
        outside of the class. Raises :class:`MissingWeightsError` without the weights.
        """
        try:
            source = inspect.getsource(type(self))
        except (OSError, TypeError) as error:
            raise ValueError(
                f"{type(self).__name__}: its source, which identifies its features, cannot be read; define the class "
                "in a file, or override fingerprint"
            ) from error
        return digest(source, repr(self))

    def extract(self, audio: Audio) -> Features:
        """Tensors of one recording by name, deterministic, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no extract(audio)")


Extractor = TypeVar("Extractor", bound=FeatureExtractor)
_SHARED: dict[FeatureExtractor, FeatureExtractor] = {}


def shared(extractor: Extractor) -> Extractor:
    """The first extractor that was equal to this one, so that its weights are loaded once for all metrics."""
    return cast(Extractor, _SHARED.setdefault(extractor, extractor))


@dataclass(frozen=True, kw_only=True)
class Embedder(FeatureExtractor, ABC):
    """Audio and, for CLAP-style models, text to unit vectors in one space. Weights are loaded on first use.

    Attributes:
        unrelated: songs with unrelated descriptions from the model's domain, to detect a collapsed text encoder.
    """

    unrelated: ClassVar[Sequence[Song]] = ()

    @abstractmethod
    def embed_audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """One unit vector for each window, in order of time."""

    def embed_text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """One unit vector for each song's description. Raises ``ValueError`` for a model without a text encoder."""
        raise ValueError(f"metrics: the embedder {self.name} has no text encoder; use it for fad, kad or coverage only")

    def extract(self, audio: Audio) -> Features:
        """``windows`` (W, D)."""
        return {"windows": self.embed_audio(audio).clone()}


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
    """A song's vector: mean of its windows' unit vectors, normalised to length 1."""
    return F.normalize(F.normalize(windows, dim=-1).mean(0), dim=-1)


def pooled_songs(songs: Sequence[Features]) -> Float[Tensor, "n d"]:
    """:func:`pooled` of each song's ``windows``."""
    return torch.stack([pooled(song["windows"]) for song in songs])


def check_collapse(vectors: Float[Tensor, "n d"], what: str, limit: float) -> None:
    """Refuse an embedder whose vectors for distinct inputs point in one direction.

    Args:
        vectors: unit vectors of distinct recordings or unrelated captions; fewer than 16 are not checked.
        what: the embedder and the kind of input, for the message.
        limit: mean pairwise cosine above which it counts as collapsed. A converted checkpoint seen in the wild gave
            0.92 between tracks, working ones 0.3 to 0.55.
    """
    n = len(vectors)
    if n < 16:
        return
    cosine = float((vectors.sum(0).square().sum() - vectors.square().sum()) / (n * (n - 1)))
    if cosine > limit:
        raise CollapsedError(
            f"{what}: mean cosine between {n} distinct inputs is {cosine:.3f}, above {limit}; the embedder "
            "has collapsed: check that its checkpoint fits the library version"
        )
