"""Copies of a text encoder's folder: network and tokenizer in one folder (transformers) or in two (diffusers)."""

from __future__ import annotations

import shutil
from pathlib import Path

NETWORK = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER = "tokenizer.json"


def copy_text_encoder(source: Path, target: Path) -> None:
    """Copy network and tokenizer to the one folder ``target``."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    if not (target / TOKENIZER).is_file():
        shutil.copytree(source.parent / "tokenizer", target, copy_function=shutil.copyfile, dirs_exist_ok=True)


def split_text_encoder(source: Path, network: Path, tokenizer: Path) -> None:
    """Copy the network's files to the folder ``network`` and the tokenizer's to ``tokenizer``."""
    copy_text_encoder(source, tokenizer)
    network.mkdir(parents=True)
    for pattern in NETWORK:
        for path in tokenizer.glob(pattern):
            path.rename(network / path.name)
