"""The frozen parts of the micro checkpoints: tokenizer, text encoder, autoencoder, silence latent, oracles.

All are fitted to the micro world from a seed, in about a minute. ``train.py experiment=micro_base`` then trains the
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
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

from acestep.conditioning.prompt import INSTRUMENTAL, TEXT2MUSIC, render_prompt
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.language import PAD
from acestep.models.spectral import SpectralAutoencoder, SpectralConfig
from acestep.synth import Oracles, draw_song, render_song, world
from acestep.synth.oracles import OTHER, LabelledFeatures, labelled_features
from acestep.synth.render import unknown_timbre
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.save import save_checkpoint

TEXT_WIDTH = 64
VOCABULARY = 640
TEXT_SONGS, AUDIO_SONGS = 1500, 400  # songs to which the tokenizer and the autoencoder are fitted
MAX_SECONDS = 600.0
POSITION_FRAMES = 504  # a multiple of most beats; tiled for longer songs
# Periods in frames of the sinusoids in the silence latent: every beat, then long ones that encode the position.
POSITION_PERIODS = (*world.BEAT_FRAMES, 48, 96, 192, 384)
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
ACCENT = 0.3  # weight of a word's own vector beside that of its meaning
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
    """Write a checkpoint with the frozen parts, a network of random weights and ``oracles.safetensors``.

    Args:
        folder: of the checkpoint.
        config: of the network.
        songs: number of songs to which the oracles are fitted.
        seed: of the songs and all random numbers.
        workers: processes that render songs and extract features.
        on_song: called after each song with the number of songs that are done.
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
            silence=silence_latent(autoencoder),
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


def silence_latent(autoencoder: SpectralAutoencoder) -> Float[Tensor, "1 t c"]:
    """The micro silence latent: encoded silence, plus sines and cosines of the frame number.

    Differs from the release, whose silence latent is encoded silence. The sinusoids are an absolute position encoding,
    with which a network of two million parameters need not learn to count frames to keep a tempo.
    """
    silent = autoencoder.encode(torch.zeros(1, 2, 4 * autoencoder.hop)).mean[:, 1:2]
    periods = torch.tensor(POSITION_PERIODS, dtype=torch.float64)
    phase = torch.arange(POSITION_FRAMES, dtype=torch.float64)[:, None] / periods
    positions = torch.cat([torch.cos(2 * math.pi * phase), torch.sin(2 * math.pi * phase)], 1)
    return silent + F.pad(positions, (0, silent.shape[-1] - positions.shape[-1]))[None].float()


def _write_text_encoder(folder: Path, seed: int, generator: torch.Generator) -> Path:
    """A byte-level BPE trained on the world's prompts, and a Qwen3 of one layer with random weights."""
    texts = []
    for index in range(TEXT_SONGS):
        prompt = render_prompt(draw_song(seed, index, instruments=world.ALL_INSTRUMENTS)[1])
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
    # Every fact and every piece of the template is one token, so that a prompt is short for a small network.
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
    network = Qwen3Model(
        Qwen3Config(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
        )
    )
    for name, parameter in network.named_parameters():
        if parameter.ndim == 2:
            # The output keeps the tokens' embeddings: the one layer adds context at half their scale.
            width = 1.0 if "embed" in name else 0.5 * parameter.shape[1] ** -0.5
            parameter.data = width * torch.randn(parameter.shape, generator=generator)
    _share_meanings(network.embed_tokens.weight.data, tokenizer, meanings, generator)
    network.half().save_pretrained(folder)
    return folder


def word_meanings() -> dict[str, tuple[str, ...]]:
    """Every word of the world and its meanings, shared by four languages; a key means its tonic and its mode."""
    meanings: dict[str, tuple[str, ...]] = {
        word: (meaning,) for words in world.WORDS.values() for meaning, word in words.items()
    }
    meanings |= {f"{tonic} {mode}": (tonic, mode) for tonic in world.TONICS for mode in world.MODES}
    for consonant, vowel in product(world.CONSONANTS.values(), world.VOWELS):
        words = world.as_sentence(world.SLOTS * [consonant + vowel])
        meanings |= {word: (f"{vowel} in place {place}",) for place, word in enumerate(words)}
    return meanings | {str(round(60 * world.FRAME_RATE / beat)): (f"{beat} frames",) for beat in world.BEAT_FRAMES}


def _share_meanings(
    table: Float[Tensor, "v c"], tokenizer: Tokenizer, meanings: dict[str, tuple[str, ...]], generator: torch.Generator
) -> None:
    """Give words of one meaning similar rows in the embedding ``table``, as training on text would."""
    names = sorted({meaning for parts in meanings.values() for meaning in parts})
    vectors = {name: torch.randn(table.shape[1], generator=generator) for name in names}
    for word, parts in meanings.items():
        meaning = sum(vectors[part] for part in parts) / math.sqrt(len(parts))
        row = tokenizer.token_to_id(word)
        table[row] = math.sqrt(1 - ACCENT**2) * meaning + ACCENT * table[row]


def fitted_autoencoder(seed: int) -> SpectralAutoencoder:
    """The micro checkpoints' autoencoder: principal components of the songs of ``seed``."""
    autoencoder = SpectralAutoencoder(SpectralConfig())
    truths = (draw_song(seed, index, instruments=world.ALL_INSTRUMENTS)[0] for index in range(AUDIO_SONGS))
    autoencoder.fit(torch.cat([autoencoder.features(torch.from_numpy(render_song(t))[None])[0] for t in truths]))
    return autoencoder


def _fit_oracles(
    autoencoder: SpectralAutoencoder, songs: int, seed: int, workers: int, on_song: Callable[[int], None] | None
) -> Oracles:
    examples: list[LabelledFeatures] = []
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pairs = pool.map(partial(example_of_song, autoencoder, seed), range(songs), chunksize=8)
        for done, pair in enumerate(pairs, start=1):
            examples += pair
            if on_song:
                on_song(done)
    return Oracles.fit(examples)


def example_of_song(autoencoder: SpectralAutoencoder, seed: int, index: int) -> list[LabelledFeatures]:
    """Oracle features of song ``index`` and of its reconstruction; a few songs have an unknown instrument."""
    rng = np.random.default_rng([seed, index, 1])
    truth, _ = draw_song(seed, index, instruments=world.ALL_INSTRUMENTS)
    other = rng.random() < REJECT_SHARE
    samples = torch.from_numpy(render_song(truth, unknown_timbre(rng) if other else None))
    decoded = autoencoder.decode(autoencoder.encode(samples[None]).mean)[0]
    labelled = replace(truth, instrument=OTHER) if other else truth
    return [labelled_features(labelled, samples), labelled_features(labelled, decoded)]
