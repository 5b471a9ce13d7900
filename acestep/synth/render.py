"""Synthesis of a song from its factors: bass, chords, drums and a source-filter voice, 48 kHz stereo.

Pitched sounds are at equal-tempered pitches below 5 kHz and drums outside this range (a kick below 75 Hz, noise above
5.5 kHz), so that every factor can be measured separately in the spectrum. The voice is a harmonic source with three
formant resonances (Fant, Acoustic Theory of Speech Production, 1960), which define the vowel of a syllable.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acestep.synth.world import FRAME_RATE, SAMPLE_RATE, TONICS, Truth

Samples = NDArray[np.float64]

HOP = SAMPLE_RATE // FRAME_RATE
PITCHED_LIMIT_HZ = 5_000.0
VOICE_LIMIT_HZ = 3_400.0
FORMANTS_HZ = {
    "a": (850, 1400, 2700),
    "e": (480, 2000, 2700),
    "i": (280, 2600, 3300),
    "o": (520, 850, 2500),
    "u": (280, 560, 2300),
}
FORMANT_WIDTH = 0.11
TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}


@dataclass(frozen=True, kw_only=True)
class Timbre:
    """Synthesis parameters of an instrument.

    ``partials`` are (semitones above the note, amplitude), ``attack`` and ``decay`` seconds (0: sustained), ``lowest``
    the lowest MIDI note of its chords, ``length`` their duration in seconds, ``tremolo`` a depth from 0 to 1.
    """

    partials: tuple[tuple[float, float], ...]
    attack: float
    lowest: int
    decay: float = 0.0
    length: float = 0.28
    tremolo: float = 0.0


ODD = tuple((12 * np.log2(k), 1 / k**0.6) for k in range(1, 16, 2))
SAW = tuple((12 * np.log2(k), 1 / k**0.8) for k in range(1, 13))
# Instruments differ in register as well as in spectrum.
TIMBRES = {
    "organ": Timbre(partials=((0, 0.8), (12, 0.8), (24, 0.7), (36, 0.6)), attack=0.02, lowest=48),
    "synth": Timbre(partials=ODD, attack=0.004, lowest=54, length=0.16),
    "piano": Timbre(
        partials=((0, 1.0), (12, 0.5), (19, 0.3), (24, 0.2), (28, 0.1)), attack=0.004, lowest=60, decay=0.2
    ),
    "strings": Timbre(partials=SAW, attack=0.12, lowest=66),
    "flute": Timbre(partials=((0, 1.0), (12, 0.08)), attack=0.06, lowest=72),
    "bell": Timbre(
        partials=((0, 0.6), (15, 0.7), (24, 0.6), (34, 0.6)), attack=0.002, lowest=76, decay=0.5, length=0.38
    ),
    "accordion": Timbre(
        partials=((0, 0.25), (12, 0.3), (19, 1.0), (24, 0.9), (31, 0.9), (34, 0.6)),
        attack=0.03, lowest=57, length=0.32, tremolo=0.6,
    ),
}  # fmt: skip
SYLLABLE_SECONDS = 0.3
TREMOLO_HZ = 5.0
WAVETABLE = 4096
PAD_LEVEL = 0.5
VERSE_LEVEL = 0.35


def midi_to_hz(note: float) -> float:
    """Equal temperament, A4 (69) = 440 Hz."""
    return float(440.0 * 2 ** ((note - 69) / 12))


def unknown_timbre(rng: np.random.Generator) -> Timbre:
    """An instrument of random partials, register, attack and decay, for the oracles' reject class."""
    steps = rng.choice(40, int(rng.integers(2, 8)), False)
    return Timbre(
        partials=tuple((float(step), float(rng.uniform(0.1, 1))) for step in steps),
        attack=float(rng.uniform(0.002, 0.15)),
        decay=float(rng.choice([0.0, 0.15, 0.4, 0.8])),
        lowest=int(rng.integers(48, 77)),
        length=float(rng.uniform(0.12, 0.4)),
    )


def render_song(truth: Truth, timbre: Timbre | None = None) -> NDArray[np.float32]:
    """The song as ``(2, samples)`` floats with a peak of 0.8; deterministic.

    ``timbre`` replaces that of the song's instrument.
    """
    rng = np.random.default_rng(truth.variation)
    count = truth.frames * HOP
    levels = dict(zip(("bass", "chords", "drums", "voice"), 10 ** (rng.uniform(-2, 2, 4) / 20), strict=True))
    pans = dict(zip(levels, rng.uniform(0.35, 0.65, 4), strict=True))
    pans["bass"] = 0.5
    tracks = {
        "bass": 0.35 * _bass(truth, count),
        "chords": 0.5 * _chords(truth, timbre or TIMBRES[truth.instrument], count),
        "drums": _drums(truth, count, rng),
        "voice": 1.1 * _voice(truth, count, rng),
    }
    mix = np.zeros((2, count))
    for name, track in tracks.items():
        mix += levels[name] * track * np.array([[np.cos(pans[name] * np.pi / 2)], [np.sin(pans[name] * np.pi / 2)]])
    return (mix * (0.8 / max(np.abs(mix).max(), 1e-9))).astype(np.float32)


def _tone(hz: float, length: int, attack: float, decay: float) -> Samples:
    time = np.arange(length) / SAMPLE_RATE
    envelope = np.minimum(time / attack, 1.0) * (np.exp(-time / decay) if decay else 1.0)
    release = min(int(0.02 * SAMPLE_RATE), length)
    envelope[length - release :] *= np.linspace(1, 0, release)
    return np.asarray(envelope * np.sin(2 * np.pi * hz * time))


def _bass(truth: Truth, count: int) -> Samples:
    """A plucked tonic with its octave and twelfth on every beat, which defines tempo and key."""
    out = np.zeros(count)
    # E2 to D#3, where semitones are wider than the resolution of the oracles' spectra.
    root = 40 + (TONICS.index(truth.tonic) - 4) % 12
    beat = truth.beat_frames * HOP
    partials = ((0, 1.0), (12, 0.4), (19, 0.15))
    pluck = np.asarray(sum(a * _tone(midi_to_hz(root + n), beat, 0.004, 0.16) for n, a in partials))
    for start in range(0, count, beat):
        out[start : start + beat] += pluck[: count - start]
    return out


def _chords(truth: Truth, timbre: Timbre, count: int) -> Samples:
    """A chord on every beat, by turns a quarter of tonic and of subdominant; a chorus adds octaves and a pad."""
    out = np.zeros(count)
    beat = truth.beat_frames * HOP
    root = 60 + TONICS.index(truth.tonic)
    chord_of = functools.cache(lambda shift, chorus: _chord(truth, timbre, root + shift, chorus))
    for index, (first, last) in enumerate(truth.slots):
        chorus = truth.sections[first >= truth.boundary] == "chorus"
        sound = chord_of(5 * (index % 2), chorus)
        for start in range(first * HOP, last * HOP, beat):
            stop = min(start + len(sound), last * HOP)
            out[start:stop] += sound[: stop - start]
    if timbre.tremolo:
        out *= 1 - timbre.tremolo * (0.5 - 0.5 * np.cos(2 * np.pi * TREMOLO_HZ * np.arange(count) / SAMPLE_RATE))
    return out / 1.5 + _chorus_pad(truth, count)


def _chorus_pad(truth: Truth, count: int) -> Samples:
    """The pad of a chorus: the tonic triad, sustained above 2.5 kHz."""
    out = np.zeros(count)
    edges = [0, truth.boundary * HOP, count]
    for section, start, stop in zip(truth.sections, edges[:-1], edges[1:], strict=True):
        if section == "chorus":
            for step in TRIADS[truth.mode]:
                hz = midi_to_hz(100 + (TONICS.index(truth.tonic) + step - 4) % 12)
                out[start:stop] += PAD_LEVEL * _tone(hz, stop - start, 0.05, 0.0)
    return out


def _chord(truth: Truth, timbre: Timbre, root: int, chorus: bool) -> Samples:
    """One beat of the triad on ``root``, voiced upwards from the timbre's lowest note."""
    length = int(timbre.length * SAMPLE_RATE)
    notes = [timbre.lowest + (root + step - timbre.lowest) % 12 for step in TRIADS[truth.mode]]
    notes += [note + 12 for note in notes] if chorus else []
    out = np.zeros(length)
    for note in notes:
        for semitones, amplitude in timbre.partials:
            hz = midi_to_hz(note + semitones)
            if hz < PITCHED_LIMIT_HZ:
                out += amplitude * (1.0 if chorus else VERSE_LEVEL) * _tone(hz, length, timbre.attack, timbre.decay)
    return out


def _band_noise(length: int, low_hz: float, high_hz: float, rng: np.random.Generator) -> Samples:
    spectrum = np.fft.rfft(rng.standard_normal(length))
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    return np.asarray(np.fft.irfft(spectrum, length))


def _drums(truth: Truth, count: int, rng: np.random.Generator) -> Samples:
    """Four patterns on a grid of half beats, of a low kick and noises above the pitched sounds."""
    out = np.zeros(count)
    beat = truth.beat_frames * HOP
    time = np.arange(beat) / SAMPLE_RATE
    kick = 0.9 * np.exp(-time / 0.09) * np.sin(2 * np.pi * (52 * time + 0.25 * (1 - np.exp(-time / 0.02))))
    snare = 0.9 * np.exp(-time / 0.07) * _band_noise(beat, 5_500, 12_000, rng)
    hat = 0.35 * np.exp(-time / 0.03) * _band_noise(beat, 11_000, 20_000, rng)
    shake = 0.3 * np.exp(-time / 0.05) * _band_noise(beat, 7_000, 20_000, rng)
    silence = np.zeros(0)
    pattern = {
        "none": (silence,),
        "four": (kick, hat),
        "backbeat": (kick, silence, snare, silence),
        "shaker": (shake,),
    }[truth.drums]
    for index, start in enumerate(range(0, count, beat // 2)):
        hit = pattern[index % len(pattern)][: count - start]
        out[start : start + len(hit)] += hit
    return out


def _voice(truth: Truth, count: int, rng: np.random.Generator) -> Samples:
    """One syllable for each quarter of the song, repeated on every beat on a note of the tonic triad."""
    out = np.zeros(count)
    beat, root = truth.beat_frames * HOP, 36 + TONICS.index(truth.tonic)
    for syllable, (first, last) in zip(truth.syllables, truth.slots, strict=False):
        degree = TRIADS[truth.mode][int(rng.integers(3))]
        hz = midi_to_hz(root + (degree if degree < 7 else degree - 12))
        time = np.arange(int(SYLLABLE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
        harmonics = np.arange(1, int(VOICE_LIMIT_HZ / hz) + 1)
        spectrum = np.zeros(WAVETABLE // 2 + 1, complex)
        spectrum[harmonics] = -0.5j * WAVETABLE * _formant_gain(harmonics * hz, syllable[-1])
        cycle = np.fft.irfft(spectrum, WAVETABLE)
        sung = np.interp(hz * time % 1 * WAVETABLE, np.arange(WAVETABLE + 1), [*cycle, cycle[0]])
        sung *= np.minimum(np.minimum(time, time[::-1]) / 0.03, 1.0)
        for start in range(first * HOP, last * HOP, beat):
            stop = min(start + len(sung), last * HOP)
            out[start:stop] = sung[: stop - start]
    return out


def _formant_gain(hz: Samples, vowel: str) -> Samples:
    """Gain of the vocal tract at ``hz``: a sum of resonances with widths proportional to their frequencies."""
    peaks = [
        weight / (1 + ((hz - centre) / (FORMANT_WIDTH * centre + 30)) ** 2)
        for centre, weight in zip(FORMANTS_HZ[vowel], (1.0, 0.8, 0.4), strict=True)
    ]
    return np.asarray(0.5 * sum(peaks))
