"""A tiny language model of random weights, with a byte-level BPE tokenizer like Qwen's."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer

from acestep.planner.init import ScratchInit
from acestep.planner.model import LanguageModel
from acestep.planner.vocabulary import Vocabulary

SIZE = {
    "vocabulary": 420,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}
TEXTS = [
    "bpm: 120\ncaption: A calm piano melody, with rain.\nduration: 30\nkeyscale: C major\nlanguage: en\n",
    "# Caption\nstrings in F# minor\n\n# Lyric\n[verse]\nla la la\n\n[chorus]\noh\n",
    "静かなピアノの曲、夜の雨。\nКороткая песня.\n",
]


@cache
def _tokenizer(codes: int) -> str:
    return language_model(codes).vocabulary.tokenizer.to_str()


def vocabulary(codes: int = 1000) -> Vocabulary:
    return Vocabulary(Tokenizer.from_str(_tokenizer(codes)))


def language_model(codes: int = 1000, seed: int = 0, **size: int) -> LanguageModel:
    """A Qwen3 of random weights, scaled so that its predictions are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    model = ScratchInit(**{**SIZE, **size})(TEXTS * 4, codes, generator)
    model.network.eval().requires_grad_(False)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model
