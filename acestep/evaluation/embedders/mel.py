"""An embedding without weights: the mel spectrum of each second. Hears timbre and balance, neither melody nor words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import cut_windows, mono
from acestep.evaluation.files import digest
from acestep.types import Song

SAMPLE_RATE = 24_000


@dataclass(frozen=True, kw_only=True)
class MelSpec:
    """Log-mel means as windows of a set distance, for a machine on which no learned embedder is at hand.

    Attributes:
        bands: mel bands, the embedding's dimensions.
        seconds: length of a window; windows do not overlap.
    """

    bands: int = 32
    seconds: float = 1.0

    def load(self) -> MelEmbedder:
        """The embedder."""
        return MelEmbedder(self)


class MelEmbedder:
    """What :class:`MelSpec` configures. Its vectors are no unit vectors: level is part of what a set sounds like."""

    unrelated = ()
    pure = True

    def __init__(self, spec: MelSpec) -> None:
        self.name = "mel"
        self.fingerprint = digest(f"mel-{spec.bands}-bands-{spec.seconds:g}-seconds")
        self._length = round(spec.seconds * SAMPLE_RATE)
        self._mel = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=1024, hop_length=480, n_mels=spec.bands, f_min=40.0, f_max=12_000.0
        )

    @torch.inference_mode()
    def audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """Mean log energy of each band in each window, in decibels over 10."""
        windows = cut_windows(mono(audio, SAMPLE_RATE), self._length, self._length)
        return torch.log10(self._mel(windows) + 1e-6).mean(-1)

    def text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """Refused: there is no joint space with words."""
        raise ValueError("eval.metrics: the mel embedding knows no words; use it for set distances only")
