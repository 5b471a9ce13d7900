"""Initialisation of a language model for training: from a pretrained folder, or with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from acestep.planner.model import LanguageModel, embedding_rows, language_folder, read_network
from acestep.planner.vocabulary import FIRST_CODE, Vocabulary, extend, read_tokenizer

# How Qwen's tokenizer splits text before BPE: no token spans the end of a line.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class PretrainedInit:
    """A Hugging Face folder: of a planner, or of a plain text model, to which code tokens are added.

    Args:
        path: the folder, or the folder of a run that trained a planner.
    """

    path: str

    def __call__(self, texts: Sequence[str], codes: int, generator: torch.Generator) -> LanguageModel:
        """The model. New rows of its embedding are drawn from a Gaussian with the old rows' mean and variance."""
        folder = language_folder(self.path)
        if not (folder / "config.json").is_file():
            raise ValueError(f"language.path={folder}: need config.json, tokenizer.json and *.safetensors there")
        tokenizer = read_tokenizer(folder, "language.path")
        if tokenizer.token_to_id(FIRST_CODE) is not None:
            model = LanguageModel.from_folder(folder, key="language.path")
            model.network.requires_grad_(True)
            return model
        network = read_network(folder, "language.path", torch.float32)
        vocabulary = Vocabulary(extend(tokenizer, codes), f"language.path={folder}")
        _resize_embeddings(network, vocabulary.size, generator)
        return LanguageModel(network, vocabulary)


@dataclass(frozen=True, kw_only=True)
class ScratchInit:
    """A Qwen3 of random weights, with a BPE tokenizer trained on the songs' texts.

    Args:
        vocabulary: text tokens, in addition to the code tokens.
        hidden_size: width.
        intermediate_size: width inside the feed-forward layers.
        num_hidden_layers: layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads.
        head_dim: width of a head.
        max_position_embeddings: context length in tokens.
    """

    vocabulary: int = 512
    hidden_size: int = 128
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 8192

    def __call__(self, texts: Sequence[str], codes: int, generator: torch.Generator) -> LanguageModel:
        """The model, which depends on ``texts``, ``codes`` and ``generator`` only."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=self.vocabulary, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary = Vocabulary(extend(tokenizer, codes))
        sizes = {name: value for name, value in vars(self).items() if name != "vocabulary"}
        with torch.random.fork_rng(devices=[]):
            network = Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary.size, tie_word_embeddings=True, **sizes))
        network.generation_config = GenerationConfig()
        _init_weights(network, generator)
        return LanguageModel(network, vocabulary)


@torch.no_grad()
def _init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Matrices from N(0, 0.02), as Qwen3's ``initializer_range``; norms at one."""
    for parameter in network.parameters():
        if parameter.ndim < 2:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)


@torch.no_grad()
def _resize_embeddings(network: PreTrainedModel, size: int, generator: torch.Generator) -> None:
    before = embedding_rows(network)
    if size <= before:
        return
    with torch.random.fork_rng(devices=[]):
        network.resize_token_embeddings(size, mean_resizing=False)
    for layer in (network.get_input_embeddings(), network.get_output_embeddings()):
        table = cast("torch.Tensor", layer.weight)
        old = table[:before].float()
        drawn = torch.randn(table[before:].shape, generator=generator)
        table[before:] = (old.mean(0) + drawn * old.std(0)).to(table)
        if network.config.tie_word_embeddings:
            return
