"""The micro world: songs whose truth is known, and oracles that read it back. Knows no network but numpy and torch."""

from acestep.synth.oracles import CHANCE, FACTORS, Oracles
from acestep.synth.render import render
from acestep.synth.world import (
    CURATED,
    INSTRUMENTS,
    MUSICIAN,
    UNSEEN_INSTRUMENT,
    WEB,
    Annotation,
    Truth,
    describe,
    draw_truth,
)
from acestep.synth.write import draw_song, read_truth, write_world

__all__ = [
    "CHANCE",
    "CURATED",
    "FACTORS",
    "INSTRUMENTS",
    "MUSICIAN",
    "UNSEEN_INSTRUMENT",
    "WEB",
    "Annotation",
    "Oracles",
    "Truth",
    "describe",
    "draw_song",
    "draw_truth",
    "read_truth",
    "render",
    "write_world",
]
