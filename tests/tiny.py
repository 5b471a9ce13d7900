"""A complete checkpoint of random weights, small enough for tests, with all modules of the release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Qwen3Config, Qwen3Model

from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.models.spectral import SpectralAutoencoder, SpectralConfig
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.save import save_checkpoint

NETWORK = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "encoder_hidden_size": 12,
    "encoder_intermediate_size": 16,
    "encoder_num_attention_heads": 2,
    "encoder_num_key_value_heads": 1,
    "num_lyric_encoder_hidden_layers": 2,
    "num_timbre_encoder_hidden_layers": 1,
    "num_attention_pooler_hidden_layers": 1,
    "text_hidden_dim": 16,
    "fsq_dim": 12,
    "timbre_fix_frame": 10,
    "padding": "masked",
}
TEXT = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
SAMPLER = {"schedule": {"class": "Shifted", "steps": 2, "shift": 1.0}, "guidance": {"class": "CFG", "scale": 2.0}}

OOBLECK = {
    "encoder_hidden_size": 128,
    "downsampling_ratios": [2, 4],
    "channel_multiples": [1, 1],
    "decoder_channels": 2,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 200,
}


def write_tiny(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of this ``seed`` to ``folder``."""
    return save_checkpoint(tiny_checkpoint(folder.with_name(f"{folder.name}.text"), seed), folder)


def tiny_checkpoint(text_folder: Path, seed: int = 0) -> Checkpoint:
    """The checkpoint with its spectral autoencoder; the text encoder is written to ``text_folder``."""
    generator = torch.Generator().manual_seed(seed)
    network = AceStep(AceStepConfig.from_dict(NETWORK))
    network.init_weights(generator)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    autoencoder = SpectralAutoencoder(SpectralConfig())
    autoencoder.fit(torch.randn(500, autoencoder.config.features, generator=generator))
    return Checkpoint(
        name="tiny",
        network_config=NETWORK,
        network=network.state_dict(),
        silence=torch.randn(1, 40, 64, generator=generator),
        autoencoder_class="spectral",
        autoencoder_config={},
        autoencoder=autoencoder.state_dict(),
        text_encoder=write_text_encoder(text_folder, generator),
        lengths=Lengths(min_seconds=0.2, max_seconds=4.0, default_seconds=0.4),
        sampler=SAMPLER,
    )


def with_oobleck(checkpoint: Checkpoint, seed: int = 0, **sizes: Any) -> Checkpoint:
    """``checkpoint`` with a 25 Hz Oobleck autoencoder, which all layouts can store; ``sizes`` override its config."""
    config = {**OOBLECK, **sizes}
    autoencoder = Oobleck(OobleckConfig(**config))
    autoencoder.init_weights(torch.Generator().manual_seed(seed))
    return replace(
        checkpoint,
        autoencoder_class="oobleck",
        autoencoder_config=config,
        autoencoder=autoencoder.state_dict(),
    )


def write_text_encoder(folder: Path, generator: torch.Generator) -> Path:
    """A Qwen3 folder with a byte-level tokenizer that appends the end token."""
    network = Qwen3Model(Qwen3Config(**TEXT))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    network.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
