"""Key of any recording, by signal processing alone, compared with the requested key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Features, mono
from acestep.evaluation.hashing import digest
from acestep.evaluation.metrics.base import Scores, SongMetric
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs.metadata import parse_key

SAMPLE_RATE = 11_025
WINDOW, HOP = 8_192, 2_048
LOWEST_HZ, HIGHEST_HZ = 60.0, 2_100.0
BASS_HZ, BASS_WEIGHT = 260.0, 0.4
LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
MODES = ("major", "minor")
PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
"""Probe-tone profiles: how well each of twelve notes fits a key (Krumhansl and Kessler 1982)."""


@dataclass(frozen=True)
class Key:
    """A tonic, 0 for C to 11 for B, and a mode."""

    tonic: int
    mode: str


def read_key(text: str | None) -> Key | None:
    """The key that ``text`` names, in any spelling of :func:`~acestep.songs.metadata.parse_key`."""
    if (parts := parse_key(text)) is None:
        return None
    note, accidental, mode = parts
    return Key((LETTERS[note] + ACCIDENTALS[accidental.lower()]) % 12, mode)


def estimate_key(chroma: Float[Tensor, "c n"]) -> Key:
    """The key whose profile correlates best with the chroma of :func:`chroma`, the bass added with a smaller weight."""
    shares = chroma / chroma.sum(1, keepdim=True).clamp(min=1e-9)
    notes = shares[0] + BASS_WEIGHT * shares[1]
    scores = torch.stack([
        torch.stack([_correlation(notes, torch.tensor(PROFILES[mode]).roll(tonic)) for tonic in range(12)])
        for mode in MODES
    ])  # fmt: skip
    mode, tonic = divmod(int(scores.argmax()), 12)
    return Key(tonic, MODES[mode])


def chroma(audio: Audio) -> Float[Tensor, "c n"]:
    """Energy of twelve notes, C first, over the song: row 0 in all octaves, row 1 in the bass.

    Only peaks of the spectrum count, each at its frequency by parabolic interpolation, so that a note does not leak
    into its neighbours where bins are wide; levels are compressed, so that one loud voice does not dominate.
    """
    samples = mono(audio, SAMPLE_RATE)
    samples = torch.nn.functional.pad(samples, (0, max(WINDOW - len(samples), 0)))
    spectrum = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs()
    level = torch.log(spectrum.clamp(min=1e-7))
    low, middle, high = level[:-2], level[1:-1], level[2:]
    shift = 0.5 * (low - high) / (low - 2 * middle + high).clamp(max=-1e-6)
    hz = (torch.arange(1, len(level) - 1)[:, None] + shift) * SAMPLE_RATE / WINDOW
    peak = (middle > low) & (middle >= high) & (hz > LOWEST_HZ) & (hz < HIGHEST_HZ)
    peak &= middle > middle.amax(0, keepdim=True) - 6.0
    strength = torch.where(peak, spectrum[1:-1].clamp(min=0).sqrt(), 0.0)
    note = (torch.log2(hz.clamp(min=1.0) / 440.0) * 12 + 69).round().long() % 12
    rows = [strength, torch.where(hz < BASS_HZ, strength, 0.0)]
    return torch.stack([torch.zeros(12).index_add(0, note.flatten(), row.flatten()) for row in rows])


def key_agreement(estimate: Key, target: Key) -> dict[str, float]:
    """``mirex``: 1 for the key, 0.5 a fifth apart, 0.3 its relative, 0.2 its parallel; ``exact``, ``tonic``, ``mode``.

    A fifth counts upwards and downwards; ``mir_eval`` takes one direction only (its issue 337).
    """
    step, same_mode = (estimate.tonic - target.tonic) % 12, estimate.mode == target.mode
    relative = 9 if target.mode == "major" else 3
    shares = {0: 1.0, 5: 0.5, 7: 0.5} if same_mode else {relative: 0.3, 0: 0.2}
    return {
        "mirex": shares.get(step, 0.0),
        "exact": float(step == 0 and same_mode),
        "tonic": float(step == 0),
        "mode": float(same_mode),
    }


def _correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm()).clamp(min=1e-9)


@dataclass(frozen=True, kw_only=True)
class KeyAdherence(SongMetric):
    """Agreement with the requested key, weighted as in MIREX."""

    name = "chroma"
    fingerprint = digest(f"chroma-{SAMPLE_RATE}-{WINDOW}-{HOP}-{LOWEST_HZ:g}-{HIGHEST_HZ:g}-{BASS_HZ:g}")
    thread_safe = True

    def extract(self, audio: Audio) -> Features:
        """``chroma`` (2, 12)."""
        return {"chroma": chroma(audio)}

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return read_key(prompt.song.key) is not None

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """See :func:`key_agreement`."""
        target = read_key(prompt.song.key)
        assert target is not None
        return key_agreement(estimate_key(features["chroma"]), target)
