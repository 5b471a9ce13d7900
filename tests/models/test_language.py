"""The text encoder on a tiny Qwen3 folder: features, cache and errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny import TEXT, write_text_encoder
from tokenizers import Tokenizer, models
from transformers.utils import logging

from acestep.models import language
from acestep.models.language import TextEncoder

LONG, SHORT = "slow strings", "bells"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("language") / "text_encoder", torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder(folder)


def test_states_equal_the_network_and_padding_is_zero(encoder: TextEncoder) -> None:
    states, mask = encoder.states([LONG, SHORT])
    assert mask.sum(1).tolist() == [len(LONG) + 1, len(SHORT) + 1]
    assert states.shape == (2, len(LONG) + 1, encoder.width)
    assert encoder.width == TEXT["hidden_size"]
    assert (states[~mask] == 0).all()
    ids = torch.tensor([encoder.tokenizer.encode(SHORT).ids])
    torch.testing.assert_close(states[1][mask[1]], encoder.network(input_ids=ids).last_hidden_state[0])


def test_a_text_has_the_same_states_in_any_batch(encoder: TextEncoder) -> None:
    alone, _ = encoder.states([SHORT])
    batched, mask = encoder.states([LONG, SHORT])
    assert torch.equal(batched[1][mask[1]], alone[0])


def test_encoded_padding_differs_only_where_there_is_padding(encoder: TextEncoder) -> None:
    plain, mask = encoder.states([LONG, SHORT])
    padded, same_mask = encoder.states([LONG, SHORT], encode_padding=True)
    assert torch.equal(mask, same_mask)
    torch.testing.assert_close(padded[mask], plain[mask], atol=1e-5, rtol=1e-5)
    assert (padded[~mask] != 0).all()


def test_lyrics_are_input_embeddings(encoder: TextEncoder) -> None:
    rows, mask = encoder.embed([LONG, SHORT])
    table = encoder.network.embed_tokens.weight
    assert torch.equal(rows[1][mask[1]], table[encoder.tokenizer.encode(SHORT).ids])
    assert (rows[~mask] == table[encoder.pad_id]).all()


def test_texts_are_truncated_and_counted_whole(folder: Path) -> None:
    encoder = TextEncoder(folder, max_text_tokens=4, max_lyric_tokens=6)
    assert encoder.states([LONG])[1].sum() == 4
    assert encoder.embed([LONG])[1].sum() == 6
    assert encoder.count_tokens(LONG) == len(LONG) + 1
    # The end token takes the last of the places.
    assert torch.equal(encoder.embed([LONG])[0][0, -1], encoder.network.embed_tokens.weight[encoder.pad_id])


def test_state_cache_evicts_the_oldest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(folder)
    calls: list[int] = []
    encoder.network.register_forward_hook(lambda *_: calls.append(1))
    encoder.states(["a", "b", "a"])
    assert len(calls) == 2
    a_text = 2 * encoder.width * 4
    monkeypatch.setattr(language, "CACHE_BYTES", 2 * a_text)
    encoder.states(["c"])  # "b", used least recently, has to go
    encoder.states(["a", "c"])
    assert len(calls) == 3
    encoder.states(["b"])
    assert len(calls) == 4


def test_a_cast_clears_the_cache(folder: Path) -> None:
    encoder = TextEncoder(folder)
    before, _ = encoder.states([SHORT])
    after, _ = encoder.to(torch.bfloat16).states([SHORT])
    assert after.dtype is torch.bfloat16
    torch.testing.assert_close(after.float(), before, atol=0.1, rtol=0.1)


def test_encoder_is_frozen(folder: Path) -> None:
    encoder = TextEncoder(folder, dtype=torch.bfloat16).train()
    assert not encoder.training
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.states([SHORT])[0].dtype is torch.bfloat16


@pytest.mark.parametrize("shown", [True, False])
def test_loading_restores_the_progress_bar_setting(folder: Path, shown: bool) -> None:
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        TextEncoder(folder)
        assert logging.is_progress_bar_enabled() is shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_tokenizer_in_a_sibling_folder(folder: Path, encoder: TextEncoder, tmp_path: Path) -> None:
    apart = shutil.copytree(folder, tmp_path / "text_encoder")
    (tmp_path / "tokenizer").mkdir()
    (apart / "tokenizer.json").rename(tmp_path / "tokenizer" / "tokenizer.json")
    assert torch.equal(TextEncoder(apart).states([LONG])[0], encoder.states([LONG])[0])


def test_a_missing_tokenizer_is_an_error(folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(folder, tmp_path / "text_encoder", ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(ValueError, match="tokenizer is missing; copy the whole text encoder folder"):
        TextEncoder(bare)


def test_a_tokenizer_of_another_kind_is_an_error(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "text_encoder")
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(other / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"has no token <\|endoftext\|>"):
        TextEncoder(other)
