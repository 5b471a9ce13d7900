"""What a tagger hears in a song against what it hears in the recording of the same prompt: KL over its labels.

Two published numbers called "KL" have opposite directions and different pooling. Here it is KL(recording ‖ song) as in
audiocraft's headline; logits of all windows are averaged before one softmax, as in stable-audio-metrics. The other
direction stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import cut_windows, mono
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.embedders.pretrained import local
from acestep.evaluation.files import digest, digest_module

WINDOW_SECONDS = 10.0
BATCH = 8


def kl_divergence(p: Float[Tensor, " k"], q: Float[Tensor, " k"], eps: float = 1e-6) -> float:
    """KL(p ‖ q) in nats; ``eps`` is added to ``q``, so that a label it rules out costs a finite amount."""
    p, q = p.to(torch.float64), q.to(torch.float64) + eps
    return float(torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.log()), 0.0).sum())


@dataclass(frozen=True, kw_only=True)
class TagDivergence:
    """KL over the labels of an audio tagger, a song against the recording of its prompt.

    Attributes:
        weights: a transformers checkpoint for audio classification: a folder, or a hub id in the local cache. The
            default hears the 527 labels of AudioSet at 16 kHz (Gong et al. 2021).
        device: where it runs.
    """

    weights: str = "MIT/ast-finetuned-audioset-10-10-0.4593"
    device: str = "cpu"

    def load(self) -> TagScorer:
        """The scorer. Raises ``MissingWeightsError`` with a remedy if the weights are not on this machine."""
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        model, extractor = local(
            "metrics.tags.weights", self.weights, AutoModelForAudioClassification, AutoFeatureExtractor
        )
        return TagScorer(TaggerEar(model.to(self.device).eval(), extractor, Path(self.weights).name))


class TaggerEar:
    """Mean logits over fixed 10 s windows."""

    def __init__(self, model: Any, extractor: Any, name: str) -> None:
        self.name = f"tags-{name}"
        self.fingerprint = digest("tagger", digest_module(model), str(extractor.sampling_rate), str(WINDOW_SECONDS))
        self._model, self._extractor = model, extractor

    @torch.inference_mode()
    def hear(self, audio: Audio) -> Heard:
        """``logits`` (K,)."""
        rate = self._extractor.sampling_rate
        length = round(WINDOW_SECONDS * rate)
        parts = []
        for part in cut_windows(mono(audio, rate), length, length).split(BATCH):
            features = self._extractor([row.numpy() for row in part], sampling_rate=rate, return_tensors="pt")
            parts.append(self._model(**features.to(self._model.device)).logits.float().cpu())
        return {"logits": torch.cat(parts).mean(0)}


@dataclass(frozen=True)
class TagScorer:
    """What :class:`TagDivergence` configures."""

    ear: TaggerEar
    goal = "lowest"

    def compare(self, heard: Heard, recording: Heard) -> dict[str, float]:
        """``kl`` from the recording to the song, and ``kl_reverse``."""
        song, wanted = heard["logits"].softmax(-1), recording["logits"].softmax(-1)
        return {"kl": kl_divergence(wanted, song), "kl_reverse": kl_divergence(song, wanted)}
