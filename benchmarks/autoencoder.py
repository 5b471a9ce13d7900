"""Our Oobleck compared with diffusers', encoding and decoding a song with the same random weights.

``python -m acestep bench autoencoder --seconds 60 --json FILE``. The peer runs in two modes: the whole song at
once, its pipeline's default, and tiled (512 frames or 30 s with an overlap of a quarter or an eighth).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.audio.tiling import tiled_decode
from acestep.data.encode import TiledEncoder
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.pipeline.pipeline import DECODE_CHUNK, DECODE_OVERLAP
from benchmarks.measure import (
    CLOCKS,
    COLUMNS,
    Row,
    Run,
    add_timing,
    bench_parser,
    compared,
    largest_difference,
    machine,
    matmul_peak,
    report,
)
from benchmarks.pipeline import OOBLECK

PEER = "diffusers AutoencoderOobleck"
TILED = f"{PEER}, in tiles"
SIZES = {**OOBLECK, "xl": OobleckConfig()}
ENCODE, DECODE = "encode", "decode"
Candidate = Callable[[], Tensor]


def built(size: str) -> tuple[Oobleck, AutoencoderOobleck]:
    """Our and the peer's autoencoder with the same random weights."""
    ours = Oobleck(SIZES[size]).eval().requires_grad_(False)
    ours.init_weights(torch.Generator().manual_seed(0))
    sizes = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(ours.config).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the peer uses torch's older weight norm
        peer = AutoencoderOobleck(**sizes).eval().requires_grad_(False)
    peer.load_state_dict(ours.state_dict())
    return ours, peer


def tasks(ours: Oobleck, peer: AutoencoderOobleck, direction: str, seconds: float) -> dict[str, Candidate]:
    """Encoding or decoding of the same noise by all; ours is tiled as in the pipeline and in preprocessing."""
    config, generator = ours.config, torch.Generator().manual_seed(1)
    frames = round(seconds * config.sampling_rate / config.hop)
    latents = torch.randn(1, frames, config.decoder_input_channels, generator=generator)
    audio = torch.randn(config.audio_channels, frames * config.hop, generator=generator).mul_(0.1).clamp_(-1, 1)

    def theirs(tiled: bool) -> Tensor:
        peer.use_tiling = tiled
        if direction == DECODE:
            return peer.decode(latents.mT).sample
        return peer.encode(audio[None]).latent_dist.mean.mT

    def mine() -> Tensor:
        if direction == DECODE:
            return tiled_decode(ours, latents, DECODE_CHUNK, DECODE_OVERLAP)
        return TiledEncoder()(Audio(audio, config.sampling_rate), ours).mean

    return {"": mine, PEER: lambda: theirs(False), TILED: lambda: theirs(True)}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """All combinations of the options."""
    parser = bench_parser("autoencoder", __doc__, COLUMNS)
    text = "of the convolutions; xl is the published one, the others are narrower (default xl)"
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["xl"], metavar="SIZE", help=text)
    parser.add_argument("--seconds", nargs="+", type=float, default=[60.0], metavar="S", help="of music (default 60)")
    parser.add_argument("--ways", nargs="+", choices=(ENCODE, DECODE), default=[ENCODE, DECODE], help="(default both)")
    add_timing(parser)
    run = Run.parse(parser, arguments)
    options = run.options
    clock = CLOCKS[options.clock]
    peak = matmul_peak(clock=clock)
    rows: list[Row] = []
    for size in options.sizes:
        ours, peer = built(size)
        for seconds, direction in product(options.seconds, options.ways):
            candidates = tasks(ours, peer, direction, seconds)
            error = largest_difference({name: task() for name, task in candidates.items()})
            name, pairs = f"{size} {seconds:g} s, {direction}", (("", PEER), ("", TILED))
            rows += compared(name, candidates, pairs, error, rounds=options.rounds, peak=peak, clock=clock)
    report(rows, machine(("torch", "diffusers"), peak), run)


if __name__ == "__main__":
    main()
