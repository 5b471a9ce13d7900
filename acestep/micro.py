"""The frozen parts of the micro checkpoints, made from nothing: tokenizer, text encoder, autoencoder, silence, oracles.

Everything follows from a seed and the micro world, in about a minute. ``train.py experiment=micro_base`` then trains a
network between these parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from acestep.conditioning.prompt import INSTRUMENTAL, TEXT2MUSIC
from acestep.conditioning.prompt import render as render_prompt
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.language import PAD
from acestep.models.spectral import SpectralAutoencoder, SpectralConfig
from acestep.synth import INSTRUMENTS, UNSEEN_INSTRUMENT, Oracles, draw_song, render
from acestep.synth.oracles import OTHER, Observation, observe
from acestep.synth.render import unknown_timbre
from acestep.synth.world import BEAT_FRAMES, FRAME_RATE, MODES, TONICS, WORDS
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.save import save_checkpoint

TEXT_WIDTH = 64
VOCABULARY = 640
MAX_SECONDS = 600.0
CLOCK_FRAMES = 504  # a whole number of turns of most beats; longer songs tile it
# Frames a turn of each hand of the silence clock: every plausible beat and its halves and doubles, then slower ones.
CLOCK_PERIODS = (*range(5, 18), *range(18, 42, 2), 48, 64, 96, 144, 216, 324, 486)
TEMPLATE = (
    f"# Instruction\n{TEXT2MUSIC}\n\n# Caption",
    "\n\n# Metas\n- bpm: ",
    "\n- timesignature: ",
    "\n- keyscale: ",
    "\n- duration: ",
    " seconds\n",
    "# Languages\n",
    "\n\n# Lyric\n",
    "[verse]",
    "[chorus]",
    INSTRUMENTAL,
)
ALL_INSTRUMENTS = (*INSTRUMENTS, UNSEEN_INSTRUMENT)
REJECT_SHARE = 0.08
SAMPLER = {"schedule": {"class": "Shifted", "steps": 16, "shift": 1.0}, "guidance": {"class": "CFG", "scale": 3.0}}


def build_foundation(
    folder: Path,
    config: AceStepConfig,
    songs: int = 3000,
    seed: int = 0,
    workers: int = 1,
    on_song: Callable[[int], None] | None = None,
) -> Path:
    """Write a checkpoint to ``folder``: frozen parts that are final, a network that is new, ``oracles.safetensors``.

    Args:
        folder: where to.
        config: the network's sizes.
        songs: how many the autoencoder and the oracles are fitted on.
        seed: of the songs and of every random number.
        workers: processes that render and listen.
        on_song: told after each song how many are done.
    """
    generator = torch.Generator().manual_seed(seed)
    with TemporaryDirectory() as text_folder:
        text_encoder = _write_text_encoder(Path(text_folder), seed, songs, generator)
        autoencoder = _fitted_autoencoder(seed, min(songs, 400))
        network = AceStep(config)
        network.init_weights(generator)
        checkpoint = Checkpoint(
            name=str(folder),
            network_config=config.to_dict(),
            network=network.state_dict(),
            silence=silence_clock(autoencoder),
            autoencoder_class="spectral",
            autoencoder_config={},
            autoencoder=autoencoder.state_dict(),
            text_encoder=text_encoder,
            lengths=Lengths(min_seconds=2.0, max_seconds=MAX_SECONDS, default_seconds=8.0),
            sampler=SAMPLER,
        )
        save_checkpoint(checkpoint, folder)
    _fit_oracles(autoencoder, songs, seed, workers, on_song).save(folder / "oracles.safetensors")
    return folder


def silence_clock(autoencoder: SpectralAutoencoder) -> Float[Tensor, "1 t c"]:
    """The micro silence latent: encoded silence, plus a clock of sines and cosines of frame number.

    Differs from the release, whose silence latent is what its encoder makes of silence. That one varies with time
    too; here it does so on purpose, so that a network of two million parameters need not learn to count frames
    before it can keep a tempo.
    """
    silent = autoencoder.encode(torch.zeros(1, 2, 4 * autoencoder.hop)).mean[:, 1:2]
    turns = torch.arange(CLOCK_FRAMES, dtype=torch.float64)[:, None] / torch.tensor(CLOCK_PERIODS, dtype=torch.float64)
    hands = torch.cat([torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)], 1)
    return silent + hands[None].float()


def _write_text_encoder(folder: Path, seed: int, songs: int, generator: torch.Generator) -> Path:
    """A byte-level BPE learned on the world's prompts, and a Qwen3 of one layer with random weights."""
    texts = []
    for index in range(songs):
        prompt = render_prompt(draw_song(seed, index, instruments=ALL_INSTRUMENTS)[1])
        texts += [prompt.text.replace(PAD, ""), prompt.lyrics.replace(PAD, "")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(PAD, special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # A fact is one token, and so is what every prompt says: else attention has to find ten words among a hundred.
    facts = {word for words in WORDS.values() for word in words.values()} | {f"{t} {m}" for t in TONICS for m in MODES}
    facts |= {str(round(60 * FRAME_RATE / beat)) for beat in BEAT_FRAMES}
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TEMPLATE])
    tokenizer.add_tokens([AddedToken(text, lstrip=True, single_word=True, normalized=False) for text in sorted(facts)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {PAD}", special_tokens=[(PAD, tokenizer.token_to_id(PAD))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    size = {"hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH, "num_hidden_layers": 1, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    network = Qwen3Model(Qwen3Config(vocab_size=tokenizer.get_vocab_size(), **size, **heads))
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            # Tokens must stay recognisable in the output: the one layer adds context at half their level.
            width = 1.0 if "embed" in name else 0.5 * parameter.shape[1] ** -0.5
            parameter.data = width * torch.randn(parameter.shape, generator=generator)
    network.half().save_pretrained(folder)
    return folder


def _fitted_autoencoder(seed: int, songs: int) -> SpectralAutoencoder:
    autoencoder = SpectralAutoencoder(SpectralConfig())
    truths = (draw_song(seed, index, instruments=ALL_INSTRUMENTS)[0] for index in range(songs))
    autoencoder.fit(torch.cat([autoencoder.features(torch.from_numpy(render(t))[None])[0] for t in truths]))
    return autoencoder


def _fit_oracles(
    autoencoder: SpectralAutoencoder, songs: int, seed: int, workers: int, on_song: Callable[[int], None] | None
) -> Oracles:
    observations = []
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pairs = pool.map(partial(observe_song, autoencoder, seed), range(songs), chunksize=8)
        for done, pair in enumerate(pairs, start=1):
            observations += pair
            if on_song:
                on_song(done)
    return Oracles.fit(observations)


def observe_song(autoencoder: SpectralAutoencoder, seed: int, index: int) -> list[Observation]:
    """Song ``index`` and its reconstruction as oracles see them; a few are played by an instrument without a name."""
    rng = np.random.default_rng([seed, index, 1])
    truth, _ = draw_song(seed, index, instruments=ALL_INSTRUMENTS)
    other = rng.random() < REJECT_SHARE
    samples = torch.from_numpy(render(truth, unknown_timbre(rng) if other else None))
    again = autoencoder.decode(autoencoder.encode(samples[None]).mean)[0]
    name = OTHER if other else truth.instrument
    return [observe(truth, samples, name), observe(truth, again, name)]
