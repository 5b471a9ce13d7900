"""The frozen parts of the micro checkpoints, made from nothing: tokenizer, text encoder, autoencoder, silence, oracles.

Everything follows from a seed and the micro world, in about a minute. ``train.py experiment=micro_base`` then trains a
network between these parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
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
from acestep.synth.world import BEAT_FRAMES, CONSONANTS, FRAME_RATE, MODES, SLOTS, TONICS, VOWELS, WORDS, spelt
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.save import save_checkpoint

TEXT_WIDTH = 64
VOCABULARY = 640
TEXT_SONGS, AUDIO_SONGS = 1500, 400  # that the tokenizer and the autoencoder are fitted on
MAX_SECONDS = 600.0
CLOCK_FRAMES = 504  # a whole number of turns of most beats; longer songs tile it
# Frames a turn of each hand of the silence clock: every beat of the world, then slow ones that tell the place.
CLOCK_PERIODS = (*BEAT_FRAMES, 48, 96, 192, 384)
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
    "\n[verse]",
    "\n[chorus]",
    INSTRUMENTAL,
)
ACCENT = 0.3  # how far a word's vector lies from its meaning's
ALL_INSTRUMENTS = (*INSTRUMENTS, UNSEEN_INSTRUMENT)
REJECT_SHARE = 0.08
SAMPLER = {"schedule": {"class": "Shifted", "steps": 16, "shift": 1.0}, "guidance": {"class": "CFG", "scale": 3.0}}


def build_foundation(
    folder: Path,
    config: AceStepConfig,
    songs: int = 2000,
    seed: int = 0,
    workers: int = 1,
    on_song: Callable[[int], None] | None = None,
) -> Path:
    """Write a checkpoint to ``folder``: frozen parts that are final, a network that is new, ``oracles.safetensors``.

    Args:
        folder: where to.
        config: the network's sizes.
        songs: how many the oracles are fitted on.
        seed: of the songs and of every random number.
        workers: processes that render and listen.
        on_song: told after each song how many are done.
    """
    generator = torch.Generator().manual_seed(seed)
    with TemporaryDirectory() as text_folder:
        text_encoder = _write_text_encoder(Path(text_folder), seed, generator)
        autoencoder = fitted_autoencoder(seed)
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
            lengths=Lengths(min_seconds=2.0, max_seconds=MAX_SECONDS, default_seconds=6.0),
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
    return silent + F.pad(hands, (0, silent.shape[-1] - hands.shape[-1]))[None].float()


def _write_text_encoder(folder: Path, seed: int, generator: torch.Generator) -> Path:
    """A byte-level BPE learned on the world's prompts, and a Qwen3 of one layer with random weights."""
    texts = []
    for index in range(TEXT_SONGS):
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
    meanings = word_meanings()
    tokenizer.add_tokens(
        [AddedToken(text, rstrip=text.endswith("e]") or text.endswith("s]"), normalized=False) for text in TEMPLATE]
    )
    facts = [
        AddedToken(text, lstrip=True, single_word=text[-1].isalnum(), normalized=False) for text in sorted(meanings)
    ]
    tokenizer.add_tokens(facts)
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
    _give_meaning(network.embed_tokens.weight.data, tokenizer, meanings, generator)
    network.half().save_pretrained(folder)
    return folder


def word_meanings() -> dict[str, tuple[str, ...]]:
    """Every word of the world with what it means: the same in four languages; a key is both tonic and mode."""
    meanings = {word: (meaning,) for words in WORDS.values() for meaning, word in words.items()}
    meanings |= {f"{tonic} {mode}": (tonic, mode) for tonic in TONICS for mode in MODES}
    for consonant, vowel in product(CONSONANTS.values(), VOWELS):
        meanings |= {
            word: (f"{vowel} in place {place}",) for place, word in enumerate(spelt(SLOTS * [consonant + vowel]))
        }
    return meanings | {str(round(60 * FRAME_RATE / beat)): (f"{beat} frames",) for beat in BEAT_FRAMES}


def _give_meaning(
    table: Float[Tensor, "v c"], tokenizer: Tokenizer, meanings: dict[str, tuple[str, ...]], generator: torch.Generator
) -> None:
    """Move words of one meaning together in the embedding ``table``, as training on text does."""
    names = sorted({meaning for parts in meanings.values() for meaning in parts})
    vectors = {name: torch.randn(table.shape[1], generator=generator) for name in names}
    for word, parts in meanings.items():
        meaning = sum(vectors[part] for part in parts) / math.sqrt(len(parts))
        row = tokenizer.token_to_id(word)
        table[row] = math.sqrt(1 - ACCENT**2) * meaning + ACCENT * table[row]


def fitted_autoencoder(seed: int) -> SpectralAutoencoder:
    """The micro checkpoints' autoencoder: principal components of songs of the world that ``seed`` draws."""
    autoencoder = SpectralAutoencoder(SpectralConfig())
    truths = (draw_song(seed, index, instruments=ALL_INSTRUMENTS)[0] for index in range(AUDIO_SONGS))
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
