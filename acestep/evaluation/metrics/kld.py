"""KL divergence between an audio tagger's labels of a song and of the recording of the same prompt.

Two published numbers called "KL" have opposite directions and different pooling. Here it is KL(recording ‖ song) as in
audiocraft's headline; logits of all windows are averaged before one softmax, as in stable-audio-metrics. The other
direction is reported too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Features, cut_windows, mono
from acestep.evaluation.embedders.pretrained import load_local
from acestep.evaluation.hashing import digest, digest_module
from acestep.evaluation.metrics.base import PairMetric, Scores

WINDOW_SECONDS = 10.0
BATCH = 8


def kl_divergence(p: Float[Tensor, " k"], q: Float[Tensor, " k"], eps: float = 1e-6) -> float:
    """KL(p ‖ q) in nats; ``eps`` is added to ``q``, so that a label of probability 0 has a finite cost."""
    p, q = p.to(torch.float64), q.to(torch.float64) + eps
    return float(torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.log()), 0.0).sum())


@dataclass(frozen=True, kw_only=True)
class TagDivergence(PairMetric):
    """KL over the labels of an audio tagger, between a song and the recording of its prompt.

    Attributes:
        weights: a transformers checkpoint for audio classification: a folder, or a hub id in the local cache. The
            default has the 527 labels of AudioSet, at 16 kHz (Gong et al. 2021).
        device: device of the model.
    """

    weights: str = "MIT/ast-finetuned-audioset-10-10-0.4593"
    device: str = "cpu"
    higher_is_better = False

    @property
    def name(self) -> str:
        return f"tags-{Path(self.weights).name}"

    @cached_property
    def fingerprint(self) -> str:
        model, extractor = self._tagger
        return digest("tagger", digest_module(model), str(extractor.sampling_rate), str(WINDOW_SECONDS))

    @cached_property
    def _tagger(self) -> tuple[Any, Any]:
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        model, extractor = load_local(
            "metrics.tags.weights", self.weights, AutoModelForAudioClassification, AutoFeatureExtractor
        )
        return model.to(self.device).eval(), extractor

    @torch.inference_mode()
    def extract(self, audio: Audio) -> Features:
        """``logits`` (K,): mean over fixed 10 s windows."""
        model, extractor = self._tagger
        rate = extractor.sampling_rate
        length = round(WINDOW_SECONDS * rate)
        parts = []
        for part in cut_windows(mono(audio, rate), length, length).split(BATCH):
            inputs = extractor([row.numpy() for row in part], sampling_rate=rate, return_tensors="pt")
            parts.append(model(**inputs.to(model.device)).logits.float().cpu())
        return {"logits": torch.cat(parts).mean(0)}

    def compare(self, features: Features, recording: Features) -> Scores:
        """``kl`` from the recording to the song, and ``kl_reverse``."""
        song, target = features["logits"].softmax(-1), recording["logits"].softmax(-1)
        return {"kl": kl_divergence(target, song), "kl_reverse": kl_divergence(song, target)}
