"""A Hugging Face cache small enough for a test, and random CLAP weights: what the real libraries need offline."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

WORDS = ["piano", "drums", "flute", "slow", "fast", "song", "bright", "dark", "with", "a"]


def write_cache(home: Path) -> None:
    """Tokenizers of roberta-base, bert-base-uncased and facebook/bart-base, and a one-layer RoBERTa 768 wide."""
    from transformers import RobertaConfig, RobertaModel

    letters = [chr(code) for code in range(33, 127)] + ["Ġ"]
    byte_level = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])}
    for name in ("roberta-base", "facebook/bart-base"):
        folder = _snapshot(home, name)
        kind = "roberta" if name == "roberta-base" else "bart"
        (folder / "vocab.json").write_text(json.dumps(byte_level))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    bert = _snapshot(home, "bert-base-uncased")
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(byte_level), num_hidden_layers=1, intermediate_size=64, max_position_embeddings=130
    )
    RobertaModel(config).save_pretrained(_snapshot(home, "roberta-base"))


def write_laion_checkpoint(model: nn.Module, path: Path) -> None:
    """A checkpoint as LAION's trainer writes it: ``module.`` names, NumPy scalars, RoBERTa's old buffer."""
    import numpy as np

    tensors = {f"module.{name}": value for name, value in model.state_dict().items()}
    tensors["module.text_branch.embeddings.position_ids"] = torch.arange(130)[None]
    torch.save({"epoch": 15, "top_1": np.float64(0.9), "state_dict": tensors}, path)


def _snapshot(home: Path, name: str) -> Path:
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    folder = root / "snapshots" / "0"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text("0")
    return folder
