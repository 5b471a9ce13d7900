"""Our pipeline compared with diffusers' ``AceStepPipeline``, text to audio, from the same folder of weights.

``python -m acestep bench pipeline --sizes micro 100m --seconds 30 --json FILE``; weights are random, times are per
batch.
Both run text encoder, condition encoder, the DiT with adaptive projected guidance at every Euler step, tiled Oobleck
(enabled in the peer, with tiles of 512 frames), and normalise the peak to -1 dBFS. Rows for latents skip the last two;
rows for audio are, at few steps, mostly the time of Oobleck, which neither compiles.

The architecture is the single-width 2B family's, since the peer's condition encoder lacks XL's timbre token. Text
encoder and tokenizer are the micro world's; Oobleck is scaled down from XL's like the DiT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AceStepPipeline
from torch import Tensor

from acestep.flow import APG, Sampler, Shifted
from acestep.flow.noise import initial_noise
from acestep.models.acestep import ENCODER_SIZES, AceStep, AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.models.language import PAD
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint
from benchmarks.measure import (
    CLOCKS,
    COLUMNS,
    Row,
    Run,
    add_cases,
    bench_parser,
    compared,
    in_forms,
    largest_difference,
    machine,
    matmul_peak,
    pairings,
    report,
)
from benchmarks.sampler import SCALE, SIZES, Case

PEER = "diffusers AceStepPipeline"
PACKAGES = ("torch", "diffusers", "transformers")
TEXT = "micro_base"
"""The checkpoint with the text encoder of both."""
LATENTS, AUDIO = "latents", "audio"
SHIFT = 3.0
SONG = Song(
    caption="a calm folk song with acoustic guitar and a warm voice",
    lyrics="[verse]\n" + 6 * "the river runs below the hill\nand I will wait until you will\n",
    language="en",
    bpm=100,
    key="C major",
    time_signature="3",
)
OOBLECK = {
    "tiny": OobleckConfig(downsampling_ratios=(2, 4), channel_multiples=(1, 1), decoder_channels=4, sampling_rate=200),
    "micro": OobleckConfig(decoder_channels=8),
    "100m": OobleckConfig(decoder_channels=32),
}


def random_checkpoint(size: str) -> Checkpoint:
    """A whole model of ``size`` with random weights."""
    generator = torch.Generator().manual_seed(0)
    text = open_checkpoint(TEXT)
    config = single_width(SIZES[size], int(text.network_config["text_hidden_dim"]))
    network, autoencoder = AceStep(config), Oobleck(OOBLECK[size])
    network.init_weights(generator)
    autoencoder.init_weights(generator)
    return Checkpoint(
        name=size,
        network_config={name: value for name, value in config.to_dict().items() if value is not None},
        network=network.state_dict(),
        silence=torch.randn(1, 1500, config.audio_acoustic_hidden_dim, generator=generator),
        autoencoder_class="oobleck",
        autoencoder_config=vars(OOBLECK[size]),
        autoencoder=autoencoder.state_dict(),
        text_encoder=text.text_encoder,
        lengths=Lengths(min_seconds=0.2, max_seconds=600.0, default_seconds=30.0),
    )


def single_width(config: AceStepConfig, text_width: int) -> AceStepConfig:
    """``config`` with a condition encoder of the DiT's width, at most as deep as published.

    Initial weights are scaled as in XL, so that the conditions affect the result.
    """
    depth = config.num_hidden_layers
    return replace(
        config,
        **dict.fromkeys(ENCODER_SIZES),
        num_lyric_encoder_hidden_layers=min(8, depth),
        num_timbre_encoder_hidden_layers=min(4, depth),
        text_hidden_dim=text_width,
        fsq_dim=config.hidden_size,
        initializer_range=config.hidden_size**-0.5,
    )


@dataclass(frozen=True)
class Both:
    """One case for both pipelines, from the same folder of weights."""

    case: Case
    folder: Path
    pipeline: Pipeline

    @property
    def songs(self) -> list[Song]:
        """The songs of the batch: the same text, each with its own noise."""
        song = replace(SONG, seconds=self.case.seconds)
        return [self.pipeline.resolve(replace(song, seed=seed)) for seed in range(self.case.batch)]

    def ours(self, until: str, compiled: bool) -> Callable[[], Tensor]:
        """Our pipeline to latents or audio."""
        pipeline, songs = replace(self.pipeline, compiled=compiled), self.songs
        sampler = Sampler(schedule=Shifted(steps=self.case.steps, shift=SHIFT), guidance=APG(scale=SCALE))

        def make() -> Tensor:
            pipeline.conditioner.text_encoder.to("cpu")  # clears the cache of texts, which the peer does not have
            if until == LATENTS:
                return torch.stack(pipeline.latents(songs, sampler))
            return torch.stack([audio.samples for audio in pipeline.generate(songs, sampler, len(songs))])

        return make

    def theirs(self, until: str, compiled: bool) -> Callable[[], Tensor]:
        """The peer's, from the same noise."""
        peer = AceStepPipeline.from_pretrained(self.folder, dtype=torch.float32)
        peer.tokenizer.pad_token = PAD
        peer.set_progress_bar_config(disable=True)
        peer.vae.enable_tiling()
        for layer in peer.transformer.layers if compiled else ():
            layer.compile()
        songs = self.songs
        frames = round(songs[0].seconds * peer.latents_per_second)
        shape = len(songs), frames, peer.vae.config.decoder_input_channels

        def make() -> Tensor:
            (result,) = peer(
                prompt=[song.caption for song in songs],
                lyrics=[song.lyrics for song in songs],
                vocal_language=SONG.language,
                bpm=SONG.bpm,
                keyscale=SONG.key,
                timesignature=SONG.time_signature,
                audio_duration=peer_duration(frames, peer.latents_per_second),
                num_inference_steps=self.case.steps,
                shift=SHIFT,
                guidance_scale=SCALE,
                latents=initial_noise(shape, [song.seed for song in songs]),
                output_type="latent" if until == LATENTS else "pt",
                return_dict=False,
            )
            return result

        return make


def peer_duration(frames: int, rate: float) -> float:
    """Duration for which the peer generates ``frames``; it rounds up, so a rounding error would add a frame."""
    seconds = frames / rate
    return seconds if math.ceil(seconds * rate) == frames else math.nextafter(seconds, 0)


@torch.no_grad()
def compare(
    both: Both, until: str, rounds: int, peak: float, clock: Callable[[], float], compiled: bool = False
) -> list[Row]:
    """Compare both pipelines on one case, with torch.compile too if ``compiled``."""
    tasks = in_forms(PEER, lambda form: both.ours(until, form), lambda form: both.theirs(until, form), compiled)
    error = largest_difference({name: task() for name, task in tasks.items()})
    name, pairs = f"{both.case.name}, to {until}", pairings(PEER, compiled)
    return compared(name, tasks, pairs, error, rounds=rounds, peak=peak, clock=clock)


def main(arguments: Sequence[str] | None = None) -> None:
    """All combinations of the options."""
    parser = bench_parser("pipeline", __doc__, COLUMNS)
    parser.add_argument("--steps", type=int, default=8, help="Euler steps, each with two predictions (default 8)")
    ends = (LATENTS, AUDIO)
    parser.add_argument("--until", nargs="+", choices=ends, default=ends, help="last stage (default both)")
    add_cases(parser, list(SIZES), (30.0,))
    run = Run.parse(parser, arguments)
    options = run.options
    clock = CLOCKS[options.clock]
    peak = matmul_peak(clock=clock)
    rows = []
    for size in options.sizes:
        with TemporaryDirectory() as temporary:
            folder = save_checkpoint(random_checkpoint(size), Path(temporary) / size, "diffusers")
            pipeline = Pipeline.from_pretrained(folder)
            for seconds, batch, until in product(options.seconds, options.batch, options.until):
                both = Both(Case(size=size, seconds=seconds, batch=batch, steps=options.steps), folder, pipeline)
                rows += compare(both, until, options.rounds, peak, clock, options.compiled)
    report(rows, machine(PACKAGES, peak), run)


if __name__ == "__main__":
    main()
