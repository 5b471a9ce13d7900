"""The words and the language that a speech recogniser of the Whisper family hears in a song."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import mono
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.embedders.pretrained import local
from acestep.evaluation.files import digest, digest_module

LONGEST_SECONDS = 30.0
SHORTEST_SECONDS = 25.0
NO_VOICE = 0.6
"""Probability of "no speech" above which a window's text is taken for invented, as in Whisper's own decoding."""


@dataclass(frozen=True, kw_only=True)
class WhisperSpec:
    """A multilingual checkpoint of the Whisper family, as transformers holds it.

    Attributes:
        weights: a folder, or a hub id in the local cache.
        device: where it runs.
        tokens: most tokens in a window of 30 s.
    """

    weights: str = "openai/whisper-large-v3"
    device: str = "cpu"
    tokens: int = 224

    def load(self) -> Whisper:
        """The recogniser. Raises ``MissingWeightsError`` with a remedy if the weights are not on this machine."""
        return _loaded(self)


@cache
def _loaded(spec: WhisperSpec) -> Whisper:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model, processor = local("recogniser.weights", spec.weights, WhisperForConditionalGeneration, WhisperProcessor)
    return Whisper(model.to(spec.device).eval(), processor, Path(spec.weights).name, spec.tokens)


class Whisper:
    """Windows of at most 30 s, cut where the song is quietest, decoded greedily one by one."""

    def __init__(self, model: Any, processor: Any, name: str, tokens: int) -> None:
        self.name = name
        self.fingerprint = digest("whisper", digest_module(model), str(tokens), f"{SHORTEST_SECONDS}-{NO_VOICE}")
        self._model, self._processor, self._tokens = model, processor, tokens
        self._language_ids = {
            token.strip("<|>"): number for token, number in sorted(model.generation_config.lang_to_id.items())
        }

    @property
    def languages(self) -> list[str]:
        """Codes of the languages it tells apart, in the order of its probabilities."""
        return list(self._language_ids)

    @torch.inference_mode()
    def hear(self, audio: Audio, language: str) -> Heard:
        """``text`` as UTF-8 bytes, ``languages`` (K,) probabilities and ``voice`` (1), the share of sung windows.

        Text and languages come from the sung windows only; without any there is no text, and languages are all 0.
        ``language`` is forced on the transcription; empty takes the likeliest.
        """
        rate = self._processor.feature_extractor.sampling_rate
        texts, languages, voiced = [], torch.zeros(len(self._language_ids)), 0
        windows = cut_where_quiet(mono(audio, rate), rate)
        for window in windows:
            features = self._processor.feature_extractor(window.numpy(), sampling_rate=rate, return_tensors="pt")
            inputs = features.input_features.to(self._model.device, self._model.dtype)
            likely, no_voice = self._first_look(inputs)
            if no_voice > NO_VOICE:
                continue
            voiced += 1
            languages += likely
            texts.append(self._text(inputs, language or self.languages[int(likely.argmax())]))
        return {
            "text": torch.tensor(list(" ".join(texts).encode()), dtype=torch.uint8),
            "languages": languages / max(voiced, 1),
            "voice": torch.tensor([voiced / len(windows)]),
        }

    def _first_look(self, inputs: Tensor) -> tuple[Float[Tensor, " k"], float]:
        """Probabilities of the languages, and that nobody sings, from the first token after the start."""
        start = torch.full((1, 1), self._model.config.decoder_start_token_id, device=inputs.device)
        logits = self._model(inputs, decoder_input_ids=start).logits[0, -1].float().cpu()
        tokenizer = self._processor.tokenizer
        names = [name for name in ("<|nospeech|>", "<|nocaptions|>") if name in tokenizer.get_vocab()]
        silent = float(logits.softmax(-1)[tokenizer.convert_tokens_to_ids(names[0])]) if names else 0.0
        return logits[list(self._language_ids.values())].softmax(-1), silent

    def _text(self, inputs: Tensor, language: str) -> str:
        found = self._model.generate(
            inputs, language=language, task="transcribe", return_timestamps=False, num_beams=1, do_sample=False,
            max_new_tokens=self._tokens,
        )  # fmt: skip
        return str(self._processor.tokenizer.decode(found[0], skip_special_tokens=True)).strip()


@dataclass(frozen=True)
class WhisperEar:
    """What a recogniser hears if ``language`` is sung; empty lets it decide."""

    whisper: Whisper
    language: str = ""
    name: str = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{self.whisper.name}-{self.language or 'any'}")
        object.__setattr__(self, "fingerprint", digest(self.whisper.fingerprint, self.language))

    def hear(self, audio: Audio) -> Heard:
        """See :meth:`Whisper.hear`."""
        return self.whisper.hear(audio, self.language)


def text_of(heard: Heard) -> str:
    """The transcription in what :meth:`Whisper.hear` gave."""
    return bytes(heard["text"].tolist()).decode()


def cut_where_quiet(samples: Float[Tensor, " s"], rate: int) -> Sequence[Float[Tensor, " w"]]:
    """The whole song in parts of 25 to 30 s, each ending where a tenth of a second is quietest."""
    parts, step = [], rate // 10
    while len(samples) > LONGEST_SECONDS * rate:
        first = round(SHORTEST_SECONDS * rate)
        energy = F.avg_pool1d(samples[first : round(LONGEST_SECONDS * rate)].square()[None, None], step, step)[0, 0]
        end = first + int(energy.argmin()) * step + step // 2
        parts.append(samples[:end])
        samples = samples[end:]
    return [*parts, samples]
