"""Whether a song sings the words and the language that were asked for, by a speech recogniser.

Recognisers invent text where nobody sings ("Thanks for watching!"): windows without a voice give none, a song's error
is capped at 1, and the share of capped songs stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.embedders.whisper import Whisper, WhisperEar, WhisperSpec, text_of
from acestep.evaluation.metrics.base import Always
from acestep.evaluation.metrics.edit_distance import UNSPACED, characters, edits, words
from acestep.evaluation.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class LyricsAccuracy:
    """Word and character error rates of the lyrics, the prompt's language forced on the recogniser.

    Attributes:
        recogniser: what listens.
    """

    recogniser: WhisperSpec = field(default_factory=WhisperSpec)

    def load(self) -> LyricsScorer:
        """The scorer."""
        return LyricsScorer(self.recogniser.load())


class LyricsScorer(Always):
    """What :class:`LyricsAccuracy` configures."""

    def __init__(self, whisper: Whisper) -> None:
        self.ear = WhisperEar(whisper)
        self._whisper = whisper

    def ear_for(self, prompt: Prompt) -> WhisperEar:
        """The ear for the prompt's language; any language where it names none that the recogniser knows."""
        known = prompt.song.language in self._whisper.languages
        return WhisperEar(self._whisper, prompt.song.language if known else "")

    def applies(self, prompt: Prompt) -> bool:
        """Whether there is something to sing."""
        return bool(words(prompt.song.lyrics))

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``accuracy``: 1 less the error rate, at least 0, of words, or of characters in a language without spaces.

        Then ``wer`` and ``cer`` uncapped, whether the rate was ``capped``, and the counts that :meth:`total` sums.
        """
        text = text_of(heard)
        by_word = edits(words(prompt.song.lyrics), words(text))
        by_character = edits(characters(prompt.song.lyrics), characters(text))
        counted = by_character if prompt.song.language in UNSPACED else by_word
        return {
            "accuracy": 1.0 - min(counted.rate, 1.0),
            "wer": by_word.rate,
            "cer": by_character.rate,
            "capped": float(counted.rate > 1.0),
            "word_edits": by_word.total,
            "words": by_word.length,
            "character_edits": by_character.total,
            "characters": by_character.length,
        }

    def total(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Error rates of all songs as one text: all edits by all words, in which long lyrics count for more."""
        summed = {name: sum(score[name] for score in scores) for name in scores[0]}
        return {
            "corpus_wer": summed["word_edits"] / summed["words"],
            "corpus_cer": summed["character_edits"] / summed["characters"],
        }


@dataclass(frozen=True, kw_only=True)
class LanguageAdherence:
    """Whether the language heard is the one asked for.

    Attributes:
        recogniser: what listens.
    """

    recogniser: WhisperSpec = field(default_factory=WhisperSpec)

    def load(self) -> LanguageScorer:
        """The scorer."""
        return LanguageScorer(self.recogniser.load())


class LanguageScorer(Always):
    """What :class:`LanguageAdherence` configures."""

    def __init__(self, whisper: Whisper) -> None:
        self.ear = WhisperEar(whisper)
        self._languages = whisper.languages

    def applies(self, prompt: Prompt) -> bool:
        """Whether words are to be sung in a language that the recogniser knows."""
        return prompt.song.language in self._languages and bool(words(prompt.song.lyrics))

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``match`` and ``probability``, which songs without a voice do not have, and ``voice``."""
        voice = {"voice": float(heard["voice"])}
        if not float(heard["voice"]):
            return voice
        asked = self._languages.index(prompt.song.language)
        found = {"match": float(int(heard["languages"].argmax()) == asked)}
        return found | {"probability": float(heard["languages"][asked])} | voice
