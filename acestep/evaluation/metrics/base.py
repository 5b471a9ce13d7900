"""What every metric looks like to the suite: it says what it must hear, and turns that into named numbers.

A metric's dataclass is its configuration; its ``load`` builds what scores, or says which weights are missing. There are
four kinds of scorer, told apart by the method they have: ``score`` (a song and its prompt), ``compare`` (a song and the
recording of the same prompt), ``among`` (a song and other songs of the same prompt) and ``distance`` (all songs of a
cell and the reference recordings). The first name that any of them gives is the metric's headline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Embedder
from acestep.evaluation.embedders.cache import Ear, Heard
from acestep.evaluation.prompts import Prompt


class SongScorer(Protocol):
    """Scores one song against its prompt.

    More is asked for where a scorer has it: ``ear_for(prompt)``, if what is heard depends on what was asked;
    ``total(scores)``, which pools the scores of a cell into numbers that are no mean over songs; ``check(recordings)``,
    which refuses a scorer that cannot tell recordings apart (generated songs prove nothing: they may be all alike);
    ``learn(heard)``, which is handed the recordings of ``corpus``, or without one the reference's; ``prompted``, false
    where the score knows nothing of the prompt; and ``goal``, which values are good.
    """

    ear: Ear
    chance: Mapping[str, float]

    def applies(self, prompt: Prompt) -> bool:
        """Whether the prompt holds what the score compares with."""
        ...

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """Named numbers."""
        ...


class PairScorer(Protocol):
    """Compares a song with the recording of the same prompt."""

    ear: Ear

    def compare(self, heard: Heard, recording: Heard) -> dict[str, float]:
        """Named numbers."""
        ...


class TakesScorer(Protocol):
    """Compares a song with other songs of the same prompt and setting, made from other noise."""

    ear: Ear

    def among(self, heard: Heard, others: Sequence[Heard]) -> dict[str, float]:
        """Named numbers; ``others`` has at least one."""
        ...


class SetScorer(Protocol):
    """Compares all songs of a cell with the reference recordings.

    A scorer that also has ``halved(heard, reference)`` gives values for random halves of the songs, drawn alike for
    every cell: their differences say how sure a difference between two cells is.
    """

    ear: Ear

    def distance(
        self, heard: Sequence[Heard], reference: Sequence[Heard], same_songs: bool = False
    ) -> dict[str, float]:
        """Named numbers. ``same_songs`` says that ``heard`` are the reference's own songs, processed."""
        ...


Scorer = SongScorer | PairScorer | TakesScorer | SetScorer


class Always:
    """The part of a song's scorer that has no condition and no level of chance."""

    chance: Mapping[str, float] = {}

    def applies(self, prompt: Prompt) -> bool:
        """Always."""
        return True


class Unprompted(Always):
    """The part of a scorer that listens to the song alone: against other prompts it would say the same again."""

    prompted = False


class EmbedderSpec(Protocol):
    """Configuration of an embedder."""

    def load(self) -> Embedder:
        """The embedder; :class:`~acestep.evaluation.embedders.base.MissingWeightsError` where it cannot be had."""
        ...


@cache
def loaded(spec: EmbedderSpec) -> Embedder:
    """``spec.load()``, once for all metrics that name the same embedder."""
    return spec.load()


@dataclass(frozen=True)
class EmbedderEar:
    """An embedder's windows."""

    embedder: Embedder

    @property
    def name(self) -> str:
        """The embedder's."""
        return self.embedder.name

    @property
    def fingerprint(self) -> str:
        """The embedder's."""
        return self.embedder.fingerprint

    @property
    def pure(self) -> bool:
        """The embedder's: whether several threads may use it at once."""
        return bool(getattr(self.embedder, "pure", False))

    def hear(self, audio: Audio) -> Heard:
        """``windows`` (W, D)."""
        return {"windows": self.embedder.audio(audio).clone()}
