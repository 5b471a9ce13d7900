"""Lyrics metrics on a Whisper of random weights: its text is random, languages, windows and error rates are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation.whisper_cache import write_whisper

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.whisper import Whisper, cut_where_quiet, transcription
from acestep.evaluation.metrics.lyrics import LanguageAdherence, LyricsAccuracy
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs import Song

RATE = 48_000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Whisper:
    return Whisper(weights=str(write_whisper(tmp_path_factory.mktemp("whisper") / "tiny")), tokens=12)


def prompt(lyrics: str, language: str = "en") -> EvaluationPrompt:
    return EvaluationPrompt(id=lyrics, song=Song(lyrics=lyrics, language=language))


def transcribed(text: str, voice: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "text": torch.tensor(list(text.encode()), dtype=torch.uint8),
        "languages": torch.tensor([0.2, 0.7, 0.1]) if voice else torch.zeros(3),
        "voice": torch.tensor([voice]),
    }


def test_transcription_is_deterministic_and_in_the_requested_language(whisper: Whisper):
    metric = LyricsAccuracy(recogniser=whisper).load()
    extractor = metric.extractor_for(prompt("a", "de"))
    assert extractor.name == "tiny-de"
    assert metric.extractor_for(prompt("a", "unknown")).name == "tiny-any"
    assert extractor.fingerprint != metric.extractor_for(prompt("a", "en")).fingerprint
    audio = Audio(0.1 * torch.randn(2, RATE * 33, generator=torch.Generator().manual_seed(0)), RATE)
    first, second = extractor.extract(audio), extractor.extract(audio)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["languages"].sum() == pytest.approx(1.0, abs=1e-5)
    assert transcription(first)


def test_error_rates_and_their_cap(whisper: Whisper):
    metric = LyricsAccuracy(recogniser=whisper).load()
    scores = metric.score(transcribed("A x c!"), prompt("[verse]\na b\nc d"))
    assert scores["wer"] == 0.5
    assert scores["accuracy"] == 0.5
    assert scores["capped"] == 0.0
    invented = metric.score(transcribed("thanks for watching you all"), prompt("la la"))
    assert (invented["accuracy"], invented["capped"]) == (0.0, 1.0)
    assert invented["wer"] == 2.5
    chinese = metric.score(transcribed("你好 世间"), prompt("你好世界", "zh"))
    assert chinese["accuracy"] == 0.75
    total = metric.aggregate([scores, invented])
    assert total["corpus_wer"] == pytest.approx((2 + 5) / (4 + 2))
    assert not metric.applies(prompt("[instrumental]"))


def test_languages_without_a_voice_do_not_count(whisper: Whisper):
    metric = LanguageAdherence(recogniser=whisper).load()
    assert metric.score(transcribed("a"), prompt("a", "en")) == pytest.approx(
        {"match": 1.0, "probability": 0.7, "voice": 1.0}
    )
    assert metric.score(transcribed("a"), prompt("a", "de"))["match"] == 0.0
    assert metric.score(transcribed("", voice=0.0), prompt("a", "de")) == {"voice": 0.0}
    assert not metric.applies(prompt("a", "unknown"))


def test_parts_end_where_it_is_quiet_and_lose_nothing():
    samples = torch.ones(16_000 * 65)
    samples[16_000 * 27 : 16_000 * 28] = 0.0
    parts = cut_where_quiet(samples, 16_000)
    assert torch.equal(torch.cat(list(parts)), samples)
    assert 27.0 <= len(parts[0]) / 16_000 <= 28.0
    assert all(25 <= len(part) / 16_000 <= 30 for part in parts[:-1])


def test_missing_weights_say_where_they_come_from(tmp_path: Path):
    with pytest.raises(MissingWeightsError, match="hf download"):
        LyricsAccuracy(recogniser=Whisper(weights=str(tmp_path / "none"))).load()
