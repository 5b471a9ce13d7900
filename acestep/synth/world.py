"""What a micro-world song is: its factors, how likely each value is, and the words people use for them.

Knows truths and texts; knows no waveform, network or file. Every factor is laid out to be identifiable from a
few seconds of audio: tempi are whole numbers of latent frames of which none is an octave of another, a song sings
four syllables, each for a quarter of it, and its first beat falls on its first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from acestep.types import Song

FRAME_RATE = 25
BEAT_FRAMES = (10, 12, 14, 16, 18)
SONG_FRAMES = (128, 144, 160)
TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MODES = ("major", "minor")
INSTRUMENTS = ("piano", "organ", "strings", "flute", "bell", "synth")
UNSEEN_INSTRUMENT = "accordion"
DRUMS = ("none", "four", "backbeat", "shaker")
SECTIONS = ("verse", "chorus")
VOWELS = ("a", "e", "i", "o", "u")
CONSONANTS = {"en": "l", "de": "n", "es": "m", "fr": "d"}
SLOTS = 4
TEMPO_TERMS = dict(zip(BEAT_FRAMES, ("presto", "allegro", "allegretto", "moderato", "andante"), strict=True))
CAMELOT = {"major": 8, "minor": 5}  # the number of C on the wheel; a fifth up is one on

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
    """Everything that decides how a micro-world song sounds, up to ``variation`` (levels, panning, melody).

    ``frames`` counts latent frames of 1/25 s; ``beat_frames`` is the length of a beat in them; the four ``syllables``
    are sung one after another, a quarter of the song each, and are empty in an instrumental.
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
        """Beats per minute, rounded as a person would write it."""
        return round(60 * FRAME_RATE / self.beat_frames)

    @property
    def key(self) -> str:
        """Key as the prompt's ``keyscale``, for instance ``G major``."""
        return f"{self.tonic} {self.mode}"

    @property
    def terms(self) -> tuple[str, str]:
        """Tempo and key as musicians call them: in Italian, and by the Camelot wheel (``8B`` is C major)."""
        place = (CAMELOT[self.mode] + 7 * TONICS.index(self.tonic) - 1) % 12 + 1
        return TEMPO_TERMS[self.beat_frames], f"{place}{'B' if self.mode == 'major' else 'A'}"

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / FRAME_RATE

    @property
    def slots(self) -> list[tuple[int, int]]:
        """Start and end frame of the song's four quarters, each beginning on the beat that is nearest."""
        starts = [self.beat_frames * round(i * self.frames / SLOTS / self.beat_frames) for i in range(SLOTS)]
        return list(pairwise([*starts, self.frames]))

    @property
    def boundary(self) -> int:
        """First frame of the second section, which begins on the beat nearest to the middle."""
        return self.slots[SLOTS // 2][0]

    @property
    def lyrics(self) -> str:
        """Lyrics with section tags, one sentence in all; empty for an instrumental."""
        if not self.syllables:
            return ""
        words = spelt(self.syllables)
        parts = words[: SLOTS // 2], words[SLOTS // 2 :]
        return "\n".join(f"[{tag}]\n{' '.join(line)}" for tag, line in zip(self.sections, parts, strict=True))

    def as_dict(self) -> dict[str, object]:
        """JSON-ready fields; ``Truth(**d)`` reads them back."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """How well a set of songs is described: the chance that a fact is left out, and that it is written wrong.

    The web's descriptions are incomplete and partly false; a curated set's are neither. The two defaults
    describe the curated kind. With ``terms`` the caption also tells tempo and key, but as musicians do: a planner can
    read ``allegro`` and ``8B``, while a DiT that was trained on the other captions cannot.
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


def spelt(syllables: Sequence[str]) -> tuple[str, ...]:
    """Four syllables as a sentence: a capital, a comma at the first line's end, a full stop at the last's.

    The spelling tells a syllable's place, so that a network of two million parameters need not learn to count words.
    """
    first, second, third, fourth = syllables
    return first.capitalize(), f"{second},", third, f"{fourth}."


def draw_truth(rng: np.random.Generator, instruments: Sequence[str] = INSTRUMENTS, instrumental: float = 0.06) -> Truth:
    """One song's factors, independent of each other and uniform; ``instrumental`` is the share without a voice."""
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


def describe(truth: Truth, rng: np.random.Generator, annotation: Annotation = CURATED) -> Song:
    """The song in words, as someone of the given care would write them: caption, lyrics and metadata."""
    wrong = draw_truth(rng, instrumental=0.0)

    def told(field: str) -> str | None:
        if rng.random() < annotation.omitted:
            return None
        source = wrong if rng.random() < annotation.wrong else truth
        return str(getattr(source, field))

    words = WORDS[truth.language]
    facts = [told("instrument"), told("drums"), told("mode"), "vocal" if truth.syllables else "instrumental"]
    named = [words[fact] for fact in facts if fact is not None]
    named = [named[i] for i in rng.permutation(len(named))]
    if annotation.terms:
        named += truth.terms
    lyrics = truth.lyrics
    if truth.syllables and rng.random() < annotation.wrong:
        lyrics = wrong.lyrics
    bpm = told("bpm")
    return Song(
        caption=f"{words['a song with']} {', '.join(named)}",
        lyrics=lyrics,
        language=truth.language,
        seconds=truth.seconds,
        bpm=None if bpm is None else int(bpm),
        key=told("key"),
        time_signature="4",
        seed=truth.variation,
    )
