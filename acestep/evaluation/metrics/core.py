"""The metrics that every evaluation starts from: CLAP adherence, FAD, KAD and the oracles of the micro world."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError, check_collapse, pooled
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.files import digest
from acestep.evaluation.metrics.base import EmbedderEar, EmbedderSpec, Unprompted, loaded
from acestep.evaluation.metrics.fad import (
    RankDeficientWarning,
    fad_infinity,
    frechet_distance,
    half_distances,
    song_distance,
)
from acestep.evaluation.metrics.gaussian import Gaussian, Moments, read_statistics, write_statistics
from acestep.evaluation.metrics.kad import kad, median_bandwidth
from acestep.evaluation.prompts import Prompt
from acestep.evaluation.statistics import spread
from acestep.synth import CHANCE, Oracles, Truth, spectra

ORACLES = Path(__file__).parents[2] / "assets" / "micro" / "oracles.safetensors"
FEWEST_SONGS = 8
"""Below which a set distance gets neither an error nor an extrapolation."""


@dataclass(frozen=True, kw_only=True)
class ClapAdherence:
    """Cosine between a song's words and its audio, in the joint space of a CLAP-style model (Wu et al. 2023).

    ``of_mean`` compares the words with the re-normalised mean of all windows' unit vectors, ``mean_of_windows`` with
    each window before the mean is taken; ``lowest_window`` and ``first_window`` with single windows. Raw cosines
    compare only within one embedder.
    """

    embedder: EmbedderSpec

    def load(self) -> ClapScorer:
        """The scorer."""
        return ClapScorer(EmbedderEar(loaded(self.embedder)))


@dataclass(frozen=True)
class ClapScorer:
    """What :class:`ClapAdherence` configures."""

    ear: EmbedderEar
    chance: Mapping[str, float] = field(default_factory=dict)
    _texts: dict[str, Tensor] = field(default_factory=dict)

    def applies(self, prompt: Prompt) -> bool:
        """Whether there are words."""
        return bool(prompt.song.caption or prompt.song.lyrics)

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """Cosines of all windows together, and of single ones."""
        text = self._text(prompt)
        windows = heard["windows"] @ text
        return {
            "of_mean": float(pooled(heard["windows"]) @ text),
            "mean_of_windows": float(windows.mean()),
            "lowest_window": float(windows.min()),
            "first_window": float(windows[0]),
        }

    def check(self, recordings: Sequence[Heard]) -> None:
        """The collapse tripwire, on recordings and on unrelated captions."""
        check_collapse(self.ear.embedder.text(self.ear.embedder.unrelated), f"{self.ear.name} on captions", 0.9)
        if recordings:
            check_collapse(
                torch.stack([pooled(one["windows"]) for one in recordings]), f"{self.ear.name} on audio", 0.8
            )

    def _text(self, prompt: Prompt) -> Tensor:
        if prompt.id not in self._texts:
            self._texts[prompt.id] = self.ear.embedder.text([prompt.song])[0].clone()
        return self._texts[prompt.id]


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """FAD between the windows of all songs and of all reference recordings, pooled, in float64.

    Attributes:
        embedder: what hears.
        statistics: an ``.npz`` of reference statistics; empty uses the prompts' recordings.
        seed: draws the song subsets of the extrapolation to infinitely many songs.
    """

    embedder: EmbedderSpec
    statistics: str = ""
    seed: int = 0

    def load(self) -> FrechetScorer:
        """The scorer."""
        return FrechetScorer(EmbedderEar(loaded(self.embedder)), self.statistics, self.seed)


@dataclass(frozen=True)
class FrechetScorer:
    """What :class:`FrechetDistance` configures."""

    ear: EmbedderEar
    statistics: str
    seed: int
    goal = "lowest"

    def distance(
        self, heard: Sequence[Heard], reference: Sequence[Heard], same_songs: bool = False
    ) -> dict[str, float]:
        """``fad``, its ``error`` and extrapolation where at least 8 songs allow them, how many windows each side had.

        Errors are standard errors over which songs there are; the extrapolation's adds that of its fit. Sets of the
        same songs share their sampling error, so between those nothing is extrapolated.
        """
        songs = [one["windows"] for one in heard]
        target = reference_statistics(reference, self.ear.name, self.statistics)
        generated = _moments(songs)
        with warnings.catch_warnings():
            # The counts stand beside the distance; a sweep need not say it again for every cell.
            warnings.simplefilter("ignore", RankDeficientWarning)
            distance = frechet_distance(generated.gaussian(), target)
        result = {"fad": distance, "windows": generated.n, "dimensions": len(target.mean)}
        if target.n is not None:
            result["reference_windows"] = target.n
        if len(songs) >= FEWEST_SONGS and not same_songs:
            error = spread(self.halved(heard, reference))
            line = fad_infinity(songs, target, self._generator())
            result |= {"error": error, "infinity": line.value, "infinity_r2": line.r_squared}
            result["infinity_error"] = math.hypot(error, line.standard_error)
        return result

    def halved(self, heard: Sequence[Heard], reference: Sequence[Heard]) -> list[float]:
        """Distances of random halves of the songs, drawn alike for every set of as many; none for very few songs."""
        if len(heard) < FEWEST_SONGS:
            return []
        target = reference_statistics(reference, self.ear.name, self.statistics)
        return half_distances([one["windows"] for one in heard], target, self._generator())

    def keep(self, reference: Sequence[Heard], path: Path) -> None:
        """Write the reference's statistics, to be named as ``statistics`` in another evaluation, or read by fadtk."""
        if not self.statistics:
            settings = {"ear": self.ear.fingerprint}
            moments = _moments([one["windows"] for one in reference])
            write_statistics(path, moments, self.ear.name, len(reference), settings)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class SongFrechetDistance:
    """FAD between one song's windows and the reference's: finds songs to listen to, among songs of equal length.

    Attributes:
        embedder: what hears; its windows should be short beside a song.
        statistics: an ``.npz`` of reference statistics; empty uses the reference recordings.
    """

    embedder: EmbedderSpec
    statistics: str = ""

    def load(self) -> SongFrechetScorer:
        """The scorer."""
        return SongFrechetScorer(EmbedderEar(loaded(self.embedder)), self.statistics)


@dataclass(frozen=True)
class SongFrechetScorer(Unprompted):
    """What :class:`SongFrechetDistance` configures. The suite hands the reference to :meth:`learn`."""

    ear: EmbedderEar
    statistics: str
    goal = "lowest"
    _known: dict[str, Gaussian] = field(default_factory=dict)

    def learn(self, reference: Sequence[Heard]) -> None:
        """Take in what songs are compared with."""
        self._known["reference"] = reference_statistics(reference, self.ear.name, self.statistics)

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``distance``, and from how many windows. Raises ``ValueError`` for a song of one window."""
        windows = heard["windows"]
        return {"distance": song_distance(windows, self._known["reference"]), "windows": float(len(windows))}


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """KAD between FAD's windows, usable from tens of songs; its ruler is the reference's median distance."""

    embedder: EmbedderSpec

    def load(self) -> KernelScorer:
        """The scorer."""
        return KernelScorer(EmbedderEar(loaded(self.embedder)))


@dataclass(frozen=True)
class KernelScorer:
    """What :class:`KernelDistance` configures."""

    ear: EmbedderEar
    goal = "lowest"

    def distance(
        self, heard: Sequence[Heard], reference: Sequence[Heard], same_songs: bool = False
    ) -> dict[str, float]:
        """``kad`` and the bandwidth that it was measured with."""
        target = torch.cat([one["windows"] for one in reference])
        bandwidth = median_bandwidth(target)
        return {"kad": kad(target, torch.cat([one["windows"] for one in heard]), bandwidth), "bandwidth": bandwidth}


@dataclass(frozen=True, kw_only=True)
class OracleAdherence:
    """Share of what a micro-world prompt asks for that the oracles hear, factor by factor, and the mean over factors.

    Attributes:
        weights: the fitted oracles.
    """

    weights: str = str(ORACLES)

    def load(self) -> OracleScorer:
        """The scorer."""
        if not Path(self.weights).is_file():
            raise MissingWeightsError(
                f"metrics.adherence.weights={self.weights}: no such file; the repository has it with weights=micro"
            )
        return OracleScorer(OracleEar(), Oracles.load(Path(self.weights)))


class OracleEar:
    """What the oracles look at: ``pitch`` (T, 72) and ``pulse`` (P, 7), and the features (1, F) of the untimed factors.

    Those features are the same whatever was asked for, so they are found once, while the song is heard.
    """

    name = "oracles"
    pure = True
    fingerprint = digest(f"oracles {spectra.RECIPE}")

    def hear(self, audio: Audio) -> Heard:
        """Spectra and features."""
        if audio.sample_rate != spectra.SAMPLE_RATE:
            raise ValueError(f"the oracles hear {spectra.SAMPLE_RATE} Hz, this song has {audio.sample_rate} Hz")
        seen = spectra.listen(audio.samples)
        return {"pitch": seen.pitch, "pulse": seen.pulse} | {
            factor: spectra.features(seen, factor) for factor in spectra.UNTIMED
        }


@dataclass(frozen=True)
class OracleScorer:
    """What :class:`OracleAdherence` configures."""

    ear: OracleEar
    oracles: Oracles

    @property
    def chance(self) -> Mapping[str, float]:
        """Score of a guess, for the mean and each factor."""
        return {"mean": sum(CHANCE.values()) / len(CHANCE), **CHANCE}

    def applies(self, prompt: Prompt) -> bool:
        """Whether the prompt comes from the micro world."""
        return bool(prompt.truth)

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``mean`` over the factors, and each factor."""
        truth = Truth(**json.loads(prompt.truth))
        untimed = {factor: heard[factor] for factor in spectra.UNTIMED}
        factors = self.oracles.score(spectra.Spectra(heard["pitch"], heard["pulse"], untimed), truth)
        return {"mean": sum(factors.values()) / len(factors), **factors}


def reference_statistics(reference: Sequence[Heard], name: str, statistics: str) -> Gaussian:
    """Those that the file ``statistics`` holds of the embedding ``name``; without a file, those of what was heard."""
    if statistics:
        return read_statistics(statistics, name)
    return _moments([one["windows"] for one in reference]).gaussian()


def _moments(songs: Sequence[Tensor]) -> Moments:
    return Moments.of(torch.cat(list(songs)))
