"""The two-tower of the micro world as an embedder, and the recipe that makes the shipped weights.

``python -m acestep.evaluation.embedders.micro_clap FILE`` trains it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.two_tower import (
    TwoTower,
    TwoTowerConfig,
    load,
    save,
    train,
    window_spectra,
    word_numbers,
)
from acestep.evaluation.files import digest, digest_module
from acestep.synth.render import SAMPLE_RATE, render
from acestep.synth.world import INSTRUMENTS, UNSEEN_INSTRUMENT, VOWELS, Annotation, Truth, describe, draw_truth
from acestep.synth.write import draw_song
from acestep.types import Autoencoder, Song

FACTS = ("order", "vowel", "tonic", "mode", "beat_frames", "instrument", "drums", "sections")
"""What may be wrong in a near miss: the order of syllables, one vowel, or a field of the truth."""
MISSES = 4
SHIPPED = Path(__file__).parents[2] / "assets" / "micro_clap" / "model.safetensors"


class MicroClap:
    """A trained :class:`TwoTower` as an embedder."""

    unrelated = tuple(draw_song(0, index)[1] for index in range(16))
    pure = True

    def __init__(self, towers: TwoTower) -> None:
        self.name = "clap-micro"
        self.fingerprint = digest("micro-clap", digest_module(towers), str(sorted(asdict(towers.config).items())))
        self._towers = towers.eval()

    @torch.inference_mode()
    def audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """One unit vector for each window."""
        return self._towers.hear(window_spectra(self._towers, audio))

    @torch.inference_mode()
    def text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """One unit vector for each song's words."""
        return self._towers.read(word_numbers(songs, self._towers.config))


@dataclass(frozen=True, kw_only=True)
class MicroClapSpec:
    """The shipped two-tower, or one trained by :func:`train`.

    Attributes:
        weights: file that :func:`save` wrote.
    """

    weights: str = str(SHIPPED)

    def load(self) -> MicroClap:
        """The embedder. Raises :class:`MissingWeightsError` with a remedy if the file is not here."""
        if not Path(self.weights).is_file():
            raise MissingWeightsError(
                f"metrics.clap.embedder.weights={self.weights}: no such file; the repository carries it as "
                "acestep/assets/micro_clap/model.safetensors, and `python -m acestep.evaluation.embedders.micro_clap` trains it"
            )
        return MicroClap(load(self.weights))


def fit(autoencoder: Autoencoder | None, *, songs: int = 3700, steps: int = 1500, seed: int = 0) -> TwoTower:
    """Towers for the micro world, the instrument of its unseen sub-style included.

    Args:
        autoencoder: every other song is heard through it, so that generated songs are judged by what they say and not
            by the codec's traces; ``None`` trains on clean songs only.
        songs: how many to draw and render.
        steps: updates.
        seed: of songs and training.
    """
    config = TwoTowerConfig()
    towers = TwoTower(config)
    spectra, words, misses = [], [], []
    for index in range(songs):
        rng = np.random.default_rng([seed, index])
        truth = draw_truth(rng, (*INSTRUMENTS, UNSEEN_INSTRUMENT))
        own, wrong = _told(truth, rng, config)
        words.append(own)
        misses.append(wrong)
        samples = torch.from_numpy(render(truth))
        if autoencoder is not None and index % 2:
            samples = autoencoder.decode(autoencoder.encode(samples[None]).mean)[0]
        with torch.inference_mode():
            spectra.append(window_spectra(towers, Audio(samples, SAMPLE_RATE))[:1].half())
    generator = torch.Generator().manual_seed(seed)
    return train(torch.cat(spectra).clone(), words, config, generator, misses=misses, steps=steps)[0]


def _told(truth: Truth, rng: np.random.Generator, config: TwoTowerConfig) -> tuple[Song, list[Song]]:
    """A song in words, and the same words with one fact wrong, :data:`MISSES` times."""
    seed = int(rng.integers(2**31))

    def told(one: Truth) -> Song:
        return describe(one, np.random.default_rng(seed), Annotation(omitted=0.2))

    own, wrong = told(truth), list[Song]()
    while len(wrong) < MISSES:
        miss = told(_with_one_wrong(truth, rng))
        right, other = word_numbers([own, miss], config)
        if not torch.equal(right, other):
            wrong.append(miss)
    return own, wrong


def _with_one_wrong(truth: Truth, rng: np.random.Generator) -> Truth:
    fact = str(rng.choice(FACTS))
    syllables = list(truth.syllables)
    if fact == "order":
        return replace(truth, syllables=tuple(syllables[i] for i in rng.permutation(len(syllables))))
    if fact == "vowel":
        for place in rng.permutation(len(syllables))[:1]:
            syllables[place] = syllables[place][:-1] + str(rng.choice(VOWELS))
        return replace(truth, syllables=tuple(syllables))
    return replace(truth, **{fact: getattr(draw_truth(rng, (*INSTRUMENTS, UNSEEN_INSTRUMENT)), fact)})


if __name__ == "__main__":
    from acestep.pipeline.pipeline import Pipeline

    save(fit(Pipeline.from_pretrained("micro").autoencoder), sys.argv[1])
