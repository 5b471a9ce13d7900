"""An embedding without weights: the mel spectrum of each second. It covers timbre and balance, not melody or words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torchaudio
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Embedder, cut_windows, mono
from acestep.evaluation.hashing import digest

SAMPLE_RATE = 24_000


@dataclass(frozen=True, kw_only=True)
class MelEmbedder(Embedder):
    """Log-mel means as windows of a set distance, for machines without weights of a learned embedder.

    Its vectors are not normalised: level is part of a set's sound.

    Attributes:
        bands: mel bands, the embedding's dimensions.
        seconds: length of a window; windows do not overlap.
    """

    bands: int = 32
    seconds: float = 1.0
    name = "mel"
    thread_safe = True

    @property
    def fingerprint(self) -> str:
        return digest(f"mel-{self.bands}-bands-{self.seconds:g}-seconds")

    @cached_property
    def _spectrogram(self) -> torchaudio.transforms.MelSpectrogram:
        return torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=1024, hop_length=480, n_mels=self.bands, f_min=40.0, f_max=12_000.0
        )

    @torch.inference_mode()
    def embed_audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """Mean log energy of each band in each window, in decibels over 10."""
        length = round(self.seconds * SAMPLE_RATE)
        return torch.log10(self._spectrogram(cut_windows(mono(audio, SAMPLE_RATE), length, length)) + 1e-6).mean(-1)
