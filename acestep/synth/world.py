"""Factors of a micro-world song: their values, their distribution, and the words for them in four languages.

Every factor can be identified in a few seconds of audio: beats are whole numbers of latent frames, none twice another;
a song has four syllables, each sung for a quarter of it; and its first beat is at its first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from acestep.songs import Song

SAMPLE_RATE = 48_000
FRAME_RATE = 25
BEAT_FRAMES = (10, 12, 14, 16, 18)
SONG_FRAMES = (128, 144, 160)
TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MODES = ("major", "minor")
INSTRUMENTS = ("piano", "organ", "strings", "flute", "bell", "synth")
UNSEEN_INSTRUMENT = "accordion"
ALL_INSTRUMENTS = (*INSTRUMENTS, UNSEEN_INSTRUMENT)
DRUMS = ("none", "four", "backbeat", "shaker")
SECTIONS = ("verse", "chorus")
VOWELS = ("a", "e", "i", "o", "u")
CONSONANTS = {"en": "l", "de": "n", "es": "m", "fr": "d"}
SLOTS = 4
TEMPO_TERMS = dict(zip(BEAT_FRAMES, ("presto", "allegro", "allegretto", "moderato", "andante"), strict=True))
CAMELOT = {"major": 8, "minor": 5}  # position of C on the wheel; a fifth up is the next position

WORDS = {
    "en": {
        "piano": "piano", "organ": "organ", "strings": "strings", "flute": "flute", "bell": "bells",
        "synth": "square synth", "accordion": "accordion", "none": "no drums", "four": "four on the floor drums",
        "backbeat": "backbeat drums", "shaker": "shaker", "major": "bright major", "minor": "dark minor",
        "vocal": "singing voice", "instrumental": "instrumental", "a song with": "a song with",
    },
    "de": {
        "piano": "Klavier", "organ": "Orgel", "strings": "Streicher", "flute": "Flöte", "bell": "Glocken",
        "synth": "Rechteck Synthesizer", "accordion": "Akkordeon", "none": "ohne Schlagzeug",
        "four": "durchgehende Bassdrum", "backbeat": "Backbeat Schlagzeug", "shaker": "Rassel",
        "major": "helles Dur", "minor": "dunkles Moll", "vocal": "Gesang", "instrumental": "rein instrumental",
        "a song with": "ein Lied mit",
    },
    "es": {
        "piano": "piano clásico", "organ": "órgano", "strings": "cuerdas", "flute": "flauta", "bell": "campanas",
        "synth": "sintetizador cuadrado", "accordion": "acordeón", "none": "sin batería",
        "four": "bombo en cada pulso", "backbeat": "batería de contratiempo", "shaker": "maracas",
        "major": "mayor brillante", "minor": "menor oscuro", "vocal": "voz cantada",
        "instrumental": "sin voz", "a song with": "una canción con",
    },
    "fr": {
        "piano": "piano droit", "organ": "orgue", "strings": "cordes", "flute": "flûte", "bell": "cloches",
        "synth": "synthé carré", "accordion": "accordéon", "none": "sans batterie",
        "four": "grosse caisse continue", "backbeat": "batterie à contretemps", "shaker": "hochet",
        "major": "majeur lumineux", "minor": "mineur sombre", "vocal": "voix chantée",
        "instrumental": "sans chant", "a song with": "une chanson avec",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The factors of a micro-world song; the audio depends on them only.

    ``frames`` is the length in latent frames of 1/25 s, ``beat_frames`` that of a beat. The four ``syllables`` are sung
    one after another, a quarter of the song each; an instrumental has none. ``variation`` is the seed of levels,
    panning and melody.
    """

    frames: int
    beat_frames: int
    tonic: str
    mode: str
    instrument: str
    drums: str
    sections: tuple[str, str]
    syllables: tuple[str, ...]
    language: str
    variation: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "sections", tuple(self.sections))
        object.__setattr__(self, "syllables", tuple(self.syllables))

    @property
    def bpm(self) -> int:
        """Beats per minute, rounded."""
        return round(60 * FRAME_RATE / self.beat_frames)

    @property
    def key(self) -> str:
        """Key as in the prompt's ``keyscale``, for instance ``G major``."""
        return f"{self.tonic} {self.mode}"

    @property
    def terms(self) -> tuple[str, str]:
        """Tempo in Italian, and key by its position on the Camelot wheel (``8B`` is C major)."""
        position = (CAMELOT[self.mode] + 7 * TONICS.index(self.tonic) - 1) % 12 + 1
        return TEMPO_TERMS[self.beat_frames], f"{position}{'B' if self.mode == 'major' else 'A'}"

    @property
    def seconds(self) -> float:
        return self.frames / FRAME_RATE

    @property
    def slots(self) -> list[tuple[int, int]]:
        """Start and end frame of the song's four quarters; each starts on the nearest beat."""
        starts = [self.beat_frames * round(i * self.frames / SLOTS / self.beat_frames) for i in range(SLOTS)]
        return list(pairwise([*starts, self.frames]))

    @property
    def boundary(self) -> int:
        """First frame of the second section, on the beat nearest to the middle."""
        return self.slots[SLOTS // 2][0]

    @property
    def lyrics(self) -> str:
        """Lyrics with section tags, one sentence; empty for an instrumental."""
        if not self.syllables:
            return ""
        words = as_sentence(self.syllables)
        parts = words[: SLOTS // 2], words[SLOTS // 2 :]
        return "\n".join(f"[{tag}]\n{' '.join(line)}" for tag, line in zip(self.sections, parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """Quality of the descriptions of a data set.

    Args:
        omitted: probability that a fact is left out; web data are incomplete.
        wrong: probability that a fact is wrong.
        terms: add tempo and key to the caption as ``Truth.terms``, which captions without it do not use.
    """

    omitted: float = 0.0
    wrong: float = 0.0
    terms: bool = False

    def __post_init__(self) -> None:
        for name in ("omitted", "wrong"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need a probability below 1")


CURATED = Annotation()
WEB = Annotation(omitted=0.2, wrong=0.05)
MUSICIAN = Annotation(terms=True)
ANNOTATIONS = {"curated": CURATED, "web": WEB, "musician": MUSICIAN}


def as_sentence(syllables: Sequence[str]) -> tuple[str, ...]:
    """Four syllables as a sentence: a capital letter, a comma after the second word, a full stop at the end.

    The spelling shows a syllable's position, so that a network of two million parameters need not learn to count words.
    """
    first, second, third, fourth = syllables
    return first.capitalize(), f"{second},", third, f"{fourth}."


def draw_truth(rng: np.random.Generator, instruments: Sequence[str] = INSTRUMENTS, instrumental: float = 0.06) -> Truth:
    """Factors of one song, independent and uniform; ``instrumental`` is the probability of no voice."""
    language = str(rng.choice(list(WORDS)))
    frames, beat = int(rng.choice(SONG_FRAMES)), int(rng.choice(BEAT_FRAMES))
    sung = rng.random() >= instrumental
    syllables = [CONSONANTS[language] + str(rng.choice(VOWELS)) for _ in range(SLOTS)]
    return Truth(
        frames=frames,
        beat_frames=beat,
        tonic=str(rng.choice(TONICS)),
        mode=str(rng.choice(MODES)),
        instrument=str(rng.choice(list(instruments))),
        drums=str(rng.choice(DRUMS)),
        sections=(str(rng.choice(SECTIONS)), str(rng.choice(SECTIONS))),
        syllables=tuple(syllables) if sung else (),
        language=language,
        variation=int(rng.integers(2**31)),
    )


def describe_song(truth: Truth, rng: np.random.Generator, annotation: Annotation = CURATED) -> Song:
    """Caption, lyrics and metadata of the song, with the errors of ``annotation``."""
    wrong = draw_truth(rng, instrumental=0.0)

    def annotated(field: str) -> str | None:
        if rng.random() < annotation.omitted:
            return None
        source = wrong if rng.random() < annotation.wrong else truth
        return str(getattr(source, field))

    words = WORDS[truth.language]
    facts = [annotated(field) for field in ("instrument", "drums", "mode")]
    facts.append("vocal" if truth.syllables else "instrumental")
    phrases = [words[fact] for fact in facts if fact is not None]
    phrases = [phrases[i] for i in rng.permutation(len(phrases))]
    if annotation.terms:
        phrases += truth.terms
    lyrics = truth.lyrics
    if truth.syllables and rng.random() < annotation.wrong:
        lyrics = wrong.lyrics
    bpm = annotated("bpm")
    return Song(
        caption=f"{words['a song with']} {', '.join(phrases)}",
        lyrics=lyrics,
        language=truth.language,
        seconds=truth.seconds,
        bpm=None if bpm is None else int(bpm),
        key=annotated("key"),
        time_signature="4",
        seed=truth.variation,
    )


def draw_song(
    seed: int, index: int, annotation: Annotation = CURATED, instruments: Sequence[str] = INSTRUMENTS
) -> tuple[Truth, Song]:
    """Factors and description of song ``index`` of the data set with this ``seed``."""
    rng = np.random.default_rng([seed, index])
    truth = draw_truth(rng, instruments)
    return truth, describe_song(truth, rng, annotation)
