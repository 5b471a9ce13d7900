"""The micro world: a synthetic data set of songs with known factors, and oracles, classifiers of these factors."""

from acestep.synth.oracles import CHANCE, Oracles
from acestep.synth.render import render_song
from acestep.synth.world import INSTRUMENTS, UNSEEN_INSTRUMENT, Truth, draw_song
from acestep.synth.write import write_world

__all__ = [
    "CHANCE",
    "INSTRUMENTS",
    "UNSEEN_INSTRUMENT",
    "Oracles",
    "Truth",
    "draw_song",
    "render_song",
    "write_world",
]
