"""A Whisper of random weights whose tokens are letters: every structure of the real one, small and offline."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LANGUAGES = ("<|en|>", "<|de|>", "<|zh|>")
SPECIAL = (
    "<|endoftext|>", "<|startoftranscript|>", *LANGUAGES, "<|translate|>", "<|transcribe|>", "<|startofprev|>",
    "<|nospeech|>", "<|notimestamps|>",
)  # fmt: skip


def write_whisper(folder: Path) -> Path:
    """Model, generation settings, tokenizer and feature extractor."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(97, 123)] + ["Ġ"]
    vocabulary = {token: number for number, token in enumerate([*letters, *SPECIAL])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = {f"{kind}_token": SPECIAL[0] for kind in ("unk", "bos", "eos", "pad")}
    tokenizer = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), **end)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    ends = {f"{kind}_token_id": vocabulary[SPECIAL[0]] for kind in ("bos", "eos", "pad")}
    start = {"decoder_start_token_id": vocabulary["<|startoftranscript|>"]}
    sizes = {f"{side}_{part}": size for side in ("encoder", "decoder")
             for part, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=len(vocabulary), d_model=16, init_std=0.5, **sizes, **ends, **start)
    )
    model.generation_config = GenerationConfig(
        is_multilingual=True,
        lang_to_id={language: vocabulary[language] for language in LANGUAGES},
        task_to_id={"transcribe": vocabulary["<|transcribe|>"], "translate": vocabulary["<|translate|>"]},
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        max_length=448,
        **ends,
        **start,
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    return folder
