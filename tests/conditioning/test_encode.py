"""Songs as condition inputs: shapes, silence, masks, and independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.conditioning.encode import Conditioner, tile_silence
from acestep.conditioning.prompt import render_prompt
from acestep.models.language import TextEncoder
from acestep.songs import Song

SONGS = [Song(caption="a", lyrics="la"), Song(caption="a longer caption", lyrics="[verse]\nla la la", seconds=2.0)]


@pytest.fixture(scope="module")
def text_encoder(tiny: Path) -> TextEncoder:
    return TextEncoder(tiny / "text_encoder")


@pytest.fixture(scope="module")
def conditioner(text_encoder: TextEncoder) -> Conditioner:
    return Conditioner(text_encoder, torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0)), 10)


def test_a_padded_batch(conditioner: Conditioner) -> None:
    inputs = conditioner.encode(SONGS, [3, 8])
    assert inputs.text.shape[:2] == inputs.text_mask.shape
    assert inputs.source.shape == inputs.chunk_mask.shape == (2, 8, 64)
    assert inputs.chunk_mask.eq(1).all()
    assert not inputs.is_cover.any()
    assert inputs.frame_mask.sum(1).tolist() == [3, 8]
    assert inputs.references.shape == (2, 10, 64)
    assert inputs.reference_index.tolist() == [0, 1]
    silence = conditioner.silence
    torch.testing.assert_close(inputs.source[0], torch.cat([silence[0, :3], silence[0, :5]]))
    torch.testing.assert_close(inputs.source[1], torch.cat([silence[0], silence[0, :2]]))


def test_a_song_is_encoded_the_same_alone_and_in_a_batch(conditioner: Conditioner) -> None:
    alone, both = conditioner.encode(SONGS[:1], [3]), conditioner.encode(SONGS, [3, 8])
    for name in ("text", "lyrics"):
        rows = getattr(alone, name).shape[1]
        assert torch.equal(getattr(both, name)[:1, :rows], getattr(alone, name))
        assert getattr(both, f"{name}_mask")[0].sum() == rows


def test_one_length_for_each_song(conditioner: Conditioner) -> None:
    with pytest.raises(ValueError, match="1 lengths for 2 songs"):
        conditioner.encode(SONGS, [3])


def test_padding_is_encoded_on_request(conditioner: Conditioner) -> None:
    zeros, filled = conditioner.encode(SONGS, [1, 1]), replace(conditioner, encode_padding=True).encode(SONGS, [1, 1])
    mask = zeros.text_mask
    assert torch.equal(mask, filled.text_mask)
    torch.testing.assert_close(zeros.text[mask], filled.text[mask], atol=1e-5, rtol=1e-5)
    assert zeros.text[~mask].eq(0).all()
    assert filled.text[~mask].ne(0).any()


def test_silence_is_repeated_where_it_is_too_short() -> None:
    silence = torch.arange(3.0).reshape(1, 3, 1)
    assert tile_silence(silence, 7).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert tile_silence(silence, 0).shape == (1, 0, 1)


def test_truncation_keeps_the_end_token(tiny: Path) -> None:
    encoder = TextEncoder(tiny / "text_encoder", max_text_tokens=6, max_lyric_tokens=4)
    long = "much too long"
    states, _ = encoder.states([long])
    embedded, _ = encoder.embed([long])
    assert states.shape[1] == 6
    assert embedded.shape[1] == 4
    assert torch.equal(embedded[0, -1], encoder.network.embed_tokens.weight[encoder.pad_id])
    assert encoder.count_tokens(long) == len(long) + 1


def test_the_end_token_occurs_twice(text_encoder: TextEncoder) -> None:
    """Once from the template, once from the tokenizer, as the published one does."""
    ids = text_encoder.tokenizer.encode(render_prompt(SONGS[0]).lyrics).ids
    assert ids[-2:] == [text_encoder.pad_id] * 2


def test_states_are_cached_but_not_across_a_change_of_dtype(text_encoder: TextEncoder, tiny: Path) -> None:
    encoder = TextEncoder(tiny / "text_encoder")
    first, _ = encoder.states(["cached"])
    assert torch.equal(encoder.states(["cached"])[0], first)
    assert encoder.to(torch.float64).states(["cached"])[0].dtype is torch.float64


def test_the_encoder_stays_frozen(tiny: Path) -> None:
    encoder = TextEncoder(tiny / "text_encoder").train()
    assert not encoder.training
    assert not encoder.network.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.json: the text encoder's tokenizer is missing"):
        TextEncoder(tmp_path)
