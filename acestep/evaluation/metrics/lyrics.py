"""Whether a song sings the requested words in the requested language, by a speech recogniser.

Recognisers invent text where nobody sings ("Thanks for watching!"): windows without a voice give none, a song's error
is capped at 1, and the share of capped songs is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from acestep.evaluation.embedders.base import Features
from acestep.evaluation.embedders.whisper import Whisper, transcription
from acestep.evaluation.metrics.base import Scores, SongMetric
from acestep.evaluation.metrics.edit_distance import UNSPACED, edit_distance, lyric_characters, lyric_words
from acestep.evaluation.prompts import EvaluationPrompt


@dataclass(frozen=True, kw_only=True)
class RecogniserMetric(SongMetric):
    """A metric on transcriptions.

    Attributes:
        recogniser: the speech recogniser.
    """

    recogniser: Whisper = field(default_factory=Whisper)

    @property
    def extractor(self) -> Whisper:
        return self.recogniser


@dataclass(frozen=True, kw_only=True)
class LyricsAccuracy(RecogniserMetric):
    """Word and character error rates of the lyrics, the prompt's language forced on the recogniser."""

    def extractor_for(self, prompt: EvaluationPrompt) -> Whisper:
        """With the prompt's language, if the recogniser has it."""
        language = prompt.song.language
        return replace(self.recogniser, language=language if language in self.recogniser.languages else "")

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return bool(lyric_words(prompt.song.lyrics))

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """``accuracy``: 1 less the error rate, at least 0, of words, or of characters in a language without spaces.

        Then ``wer`` and ``cer`` uncapped, whether the rate was ``capped``, and the counts that :meth:`aggregate` sums.
        """
        text = transcription(features)
        words, characters = lyric_words(prompt.song.lyrics), lyric_characters(prompt.song.lyrics)
        word_edits = edit_distance(words, lyric_words(text))
        character_edits = edit_distance(characters, lyric_characters(text))
        wer, cer = word_edits / len(words), character_edits / len(characters)
        rate = cer if prompt.song.language in UNSPACED else wer
        return {
            "accuracy": 1.0 - min(rate, 1.0),
            "wer": wer,
            "cer": cer,
            "capped": float(rate > 1.0),
            "word_edits": word_edits,
            "words": len(words),
            "character_edits": character_edits,
            "characters": len(characters),
        }

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> Scores:
        """Error rates of all songs as one text: all edits by all words, in which long lyrics count for more."""
        sums = {name: sum(score[name] for score in scores) for name in scores[0]}
        return {
            "corpus_wer": sums["word_edits"] / sums["words"],
            "corpus_cer": sums["character_edits"] / sums["characters"],
        }


@dataclass(frozen=True, kw_only=True)
class LanguageAdherence(RecogniserMetric):
    """Whether the song is sung in the requested language."""

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return prompt.song.language in self.recogniser.languages and bool(lyric_words(prompt.song.lyrics))

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """``match`` and ``probability``, which songs without a voice do not have, and ``voice``."""
        voice = {"voice": float(features["voice"])}
        if not float(features["voice"]):
            return voice
        requested = self.recogniser.languages.index(prompt.song.language)
        match = float(int(features["languages"].argmax()) == requested)
        return {"match": match, "probability": float(features["languages"][requested]), **voice}
