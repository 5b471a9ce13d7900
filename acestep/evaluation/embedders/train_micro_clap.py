"""Training of the shipped weights of :class:`.micro_clap.MicroClap`.

``python -m acestep.evaluation.embedders.train_micro_clap FILE`` writes them again.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.two_tower import (
    TwoTower,
    TwoTowerConfig,
    save_two_tower,
    text_token_ids,
    train_two_tower,
    window_spectra,
)
from acestep.songs import Song
from acestep.synth.render import SAMPLE_RATE, render_song
from acestep.synth.world import INSTRUMENTS, UNSEEN_INSTRUMENT, VOWELS, Annotation, Truth, describe_song, draw_truth
from acestep.types import Autoencoder

FACTS = ("order", "vowel", "tonic", "mode", "beat_frames", "instrument", "drums", "sections")
"""Changes that make a hard negative: the order of syllables, one vowel, or a field of the truth."""
HARD_NEGATIVES = 4


def fit_micro_clap(autoencoder: Autoencoder | None, *, songs: int = 3700, steps: int = 1500, seed: int = 0) -> TwoTower:
    """A two-tower model of the micro world, the instrument of its unseen sub-style included.

    Args:
        autoencoder: every other song is passed through it, so that scores of generated songs do not depend on the
            autoencoder's artefacts; ``None`` trains on clean songs only.
        songs: number of songs to draw and render.
        steps: updates.
        seed: of songs and training.
    """
    config = TwoTowerConfig()
    towers = TwoTower(config)
    spectra, descriptions, negatives = [], [], []
    for index in range(songs):
        rng = np.random.default_rng([seed, index])
        truth = draw_truth(rng, (*INSTRUMENTS, UNSEEN_INSTRUMENT))
        description, wrong = _with_hard_negatives(truth, rng, config)
        descriptions.append(description)
        negatives.append(wrong)
        samples = torch.from_numpy(render_song(truth))
        if autoencoder is not None and index % 2:
            samples = autoencoder.decode(autoencoder.encode(samples[None]).mean)[0]
        with torch.inference_mode():
            spectra.append(window_spectra(towers, Audio(samples, SAMPLE_RATE))[:1].half())
    generator = torch.Generator().manual_seed(seed)
    return train_two_tower(
        torch.cat(spectra).clone(), descriptions, config, generator, negatives=negatives, steps=steps
    )[0]


def _with_hard_negatives(truth: Truth, rng: np.random.Generator, config: TwoTowerConfig) -> tuple[Song, list[Song]]:
    """A song's description, and the same description with one fact wrong, :data:`HARD_NEGATIVES` times."""
    seed = int(rng.integers(2**31))

    def description(one: Truth) -> Song:
        return describe_song(one, np.random.default_rng(seed), Annotation(omitted=0.2))

    right, wrong = description(truth), list[Song]()
    while len(wrong) < HARD_NEGATIVES:
        negative = description(_with_one_wrong(truth, rng))
        first, second = text_token_ids([right, negative], config)
        if not torch.equal(first, second):
            wrong.append(negative)
    return right, wrong


def _with_one_wrong(truth: Truth, rng: np.random.Generator) -> Truth:
    fact = str(rng.choice(FACTS))
    syllables = list(truth.syllables)
    if fact == "order":
        return replace(truth, syllables=tuple(syllables[i] for i in rng.permutation(len(syllables))))
    if fact == "vowel":
        for index in rng.permutation(len(syllables))[:1]:
            syllables[index] = syllables[index][:-1] + str(rng.choice(VOWELS))
        return replace(truth, syllables=tuple(syllables))
    return replace(truth, **{fact: getattr(draw_truth(rng, (*INSTRUMENTS, UNSEEN_INSTRUMENT)), fact)})


if __name__ == "__main__":
    from acestep.pipeline.pipeline import Pipeline

    save_two_tower(fit_micro_clap(Pipeline.from_pretrained("micro").autoencoder), sys.argv[1])
