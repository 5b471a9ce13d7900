"""Transcription and language identification of songs by a speech recogniser of the Whisper family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import FeatureExtractor, Features, mono
from acestep.evaluation.embedders.pretrained import load_local
from acestep.evaluation.hashing import digest, digest_module

LONGEST_SECONDS = 30.0
SHORTEST_SECONDS = 25.0
NO_VOICE = 0.6
"""Probability of "no speech" above which a window's text counts as hallucinated, as in Whisper's own decoding."""


@dataclass(frozen=True, kw_only=True)
class Whisper(FeatureExtractor):
    """Windows of at most 30 s, cut where the song is quietest, decoded greedily one by one.

    Attributes:
        weights: a multilingual checkpoint of transformers: a folder, or a hub id in the local cache.
        device: device of the model.
        tokens: maximum number of tokens in a window of 30 s.
        language: code that is forced on the transcription; empty takes the most probable language.
    """

    weights: str = "openai/whisper-large-v3"
    device: str = "cpu"
    tokens: int = 224
    language: str = ""

    @property
    def name(self) -> str:
        return f"{Path(self.weights).name}-{self.language or 'any'}"

    @property
    def fingerprint(self) -> str:
        return digest(_fingerprint(self.weights, self.device, self.tokens), self.language)

    @property
    def languages(self) -> list[str]:
        """Codes of the model's languages, in the order of its probabilities."""
        return list(_language_ids(_model(self.weights, self.device)[0]))

    @torch.inference_mode()
    def extract(self, audio: Audio) -> Features:
        """``text`` as UTF-8 bytes, ``languages`` (K,) probabilities and ``voice`` (1), the share of sung windows.

        Text and languages come from the sung windows only; without any there is no text, and languages are all 0.
        """
        model, processor = _model(self.weights, self.device)
        rate = processor.feature_extractor.sampling_rate
        texts, languages, voiced = [], torch.zeros(len(self.languages)), 0
        windows = cut_where_quiet(mono(audio, rate), rate)
        for window in windows:
            features = processor.feature_extractor(window.numpy(), sampling_rate=rate, return_tensors="pt")
            inputs = features.input_features.to(model.device, model.dtype)
            probabilities, no_voice = self._first_token(inputs)
            if no_voice > NO_VOICE:
                continue
            voiced += 1
            languages += probabilities
            language = self.language or self.languages[int(probabilities.argmax())]
            tokens = model.generate(
                inputs, language=language, task="transcribe", return_timestamps=False, num_beams=1, do_sample=False,
                max_new_tokens=self.tokens,
            )  # fmt: skip
            texts.append(str(processor.tokenizer.decode(tokens[0], skip_special_tokens=True)).strip())
        return {
            "text": torch.tensor(list(" ".join(texts).encode()), dtype=torch.uint8),
            "languages": languages / max(voiced, 1),
            "voice": torch.tensor([voiced / len(windows)]),
        }

    def _first_token(self, inputs: Tensor) -> tuple[Float[Tensor, " k"], float]:
        """Probabilities of the languages and of no speech, from the first token after the start."""
        model, processor = _model(self.weights, self.device)
        start = torch.full((1, 1), model.config.decoder_start_token_id, device=inputs.device)
        logits = model(inputs, decoder_input_ids=start).logits[0, -1].float().cpu()
        names = [name for name in ("<|nospeech|>", "<|nocaptions|>") if name in processor.tokenizer.get_vocab()]
        no_voice = float(logits.softmax(-1)[processor.tokenizer.convert_tokens_to_ids(names[0])]) if names else 0.0
        return logits[list(_language_ids(model).values())].softmax(-1), no_voice


@cache
def _model(weights: str, device: str) -> tuple[Any, Any]:
    """Model and processor; raises :class:`.base.MissingWeightsError` if the weights are not on this machine."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model, processor = load_local("recogniser.weights", weights, WhisperForConditionalGeneration, WhisperProcessor)
    return model.to(device).eval(), processor


@cache
def _fingerprint(weights: str, device: str, tokens: int) -> str:
    model = _model(weights, device)[0]
    return digest("whisper", digest_module(model), str(tokens), f"{SHORTEST_SECONDS}-{NO_VOICE}")


def _language_ids(model: Any) -> dict[str, int]:
    return {token.strip("<|>"): number for token, number in sorted(model.generation_config.lang_to_id.items())}


def transcription(features: Features) -> str:
    """The text in the features of :meth:`Whisper.extract`."""
    return bytes(features["text"].tolist()).decode()


def cut_where_quiet(samples: Float[Tensor, " s"], rate: int) -> Sequence[Float[Tensor, " w"]]:
    """The whole song in parts of 25 to 30 s, each ending at the quietest tenth of a second."""
    parts, step = [], rate // 10
    while len(samples) > LONGEST_SECONDS * rate:
        first = round(SHORTEST_SECONDS * rate)
        energy = F.avg_pool1d(samples[first : round(LONGEST_SECONDS * rate)].square()[None, None], step, step)[0, 0]
        end = first + int(energy.argmin()) * step + step // 2
        parts.append(samples[:end])
        samples = samples[end:]
    return [*parts, samples]
