"""Training examples, loss and initialisation of the language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_language import TEXTS, language_model, vocabulary
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM

from acestep.planner import prompts
from acestep.planner.codes import write_codes
from acestep.planner.examples import (
    IGNORED,
    OUTPUT_PARTS,
    captioning_example,
    collate_examples,
    conditional_example,
    losses_by_part,
    unconditional_example,
)
from acestep.planner.grammar import OutputGrammars, Rules
from acestep.planner.init import PretrainedInit, ScratchInit
from acestep.planner.model import LanguageModel
from acestep.planner.plan import plan_metadata
from acestep.planner.vocabulary import Vocabulary, extend
from acestep.songs import Song

WORDS = vocabulary()
SONG = Song(
    caption="calm: strings",
    lyrics="[verse]\nla",
    seconds=12.0,
    bpm=90,
    key="F# minor",
    time_signature="3",
    language="no",
)
CODES = [7, 0, 999]


def test_examples_have_the_prompts_and_outputs_of_inference() -> None:
    block = prompts.write_plan(plan_metadata(SONG))
    example = conditional_example(WORDS, SONG, CODES)
    prompt = prompts.generation_prompt(SONG.caption, SONG.lyrics, block).text
    assert WORDS.decode(example.tokens) == f"{prompt}{write_codes(CODES)}<|im_end|>"
    assert (
        WORDS.decode(unconditional_example(WORDS, CODES).tokens)
        == f"{prompts.unconditional_prompt().text}{write_codes(CODES)}<|im_end|>"
    )
    captioning = f"{prompts.understanding_prompt(write_codes(CODES)).text}{block}\n\n{SONG.lyrics}<|im_end|>"
    assert WORDS.decode(captioning_example(WORDS, SONG, CODES).tokens) == captioning


def test_target_outputs_are_allowed_by_the_grammar() -> None:
    example = conditional_example(WORDS, SONG, CODES)
    output = [token for token, part in zip(example.tokens, example.parts, strict=True) if part != IGNORED]
    matcher = OutputGrammars(WORDS, Rules()).plan({})
    while not matcher.done:
        assert output[0] in matcher.allowed
        matcher.advance(output.pop(0))
    gap = WORDS.encode("\n\n")
    assert output == [*gap, *WORDS.code_tokens(CODES), WORDS.end]


def test_every_output_token_belongs_to_one_part() -> None:
    example = conditional_example(WORDS, SONG, CODES)

    def part(name: str) -> str:
        found = [t for t, p in zip(example.tokens, example.parts, strict=True) if p == OUTPUT_PARTS.index(name)]
        return WORDS.decode(found)

    assert part("bpm") == "bpm: 90\n"
    assert part("caption") == "caption: 'calm: strings'\n"
    assert part("language") == "language: 'no'\n"
    assert part("frame") == "<think>\n</think>\n\n<|im_end|>"
    assert part("codes") == write_codes(CODES)
    assert part("lyrics") == ""


def test_the_loss_equals_that_of_transformers_and_ignores_padding() -> None:
    model = language_model()
    examples = [conditional_example(WORDS, SONG, CODES), unconditional_example(WORDS, CODES * 3)]
    both, pad = losses_by_part(model.network, collate_examples(examples, WORDS.pad)), WORDS.pad
    alone = [losses_by_part(model.network, collate_examples([example], pad)) for example in examples]
    torch.testing.assert_close(both.totals, alone[0].totals + alone[1].totals, atol=1e-4, rtol=1e-5)
    assert torch.equal(both.counts, alone[0].counts + alone[1].counts)
    ids, parts = torch.tensor([examples[0].tokens]), torch.tensor([examples[0].parts])
    wanted = model.network(input_ids=ids, labels=ids.masked_fill(parts == IGNORED, -100)).loss
    torch.testing.assert_close(alone[0].total / alone[0].count, wanted)
    total, count = both.parts["codes"]
    assert count == 3 + 9
    assert total > 0


def test_a_small_model_overfits_two_examples() -> None:
    model = language_model(hidden_size=32)
    network = model.network.requires_grad_(True)
    examples = collate_examples(
        [conditional_example(WORDS, SONG, CODES), conditional_example(WORDS, replace(SONG, caption="x"), [5, 6])],
        WORDS.pad,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        found = losses_by_part(network, examples)
        (found.total / found.count).backward()
        optimizer.step()
    assert found.total / found.count < 0.2


def test_added_code_tokens_leave_the_logits_of_text_tokens_unchanged(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        models.BPE(vocab={x: i for i, x in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    plain = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=260, num_key_value_heads=1, tie_word_embeddings=True, **sizes)
    ).eval()
    plain.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("calm piano").ids])
    start = PretrainedInit(path=str(tmp_path))
    grown, again = (start([], 50, torch.Generator().manual_seed(0)) for _ in range(2))
    assert grown.vocabulary.codes == 50
    torch.testing.assert_close(grown.network(ids).logits[..., :256], plain(ids).logits[..., :256])
    table = grown.network.get_input_embeddings().weight
    assert len(table) == grown.vocabulary.size == 256 + 5 + 50
    assert torch.equal(table, again.network.get_input_embeddings().weight)
    assert 0.3 < table[260:].std() / table[:256].std() < 3
    saved = LanguageModel.from_folder(grown.save(tmp_path / "grown"))
    torch.testing.assert_close(saved.network(ids).logits, grown.network(ids).logits)


def test_scratch_init_depends_on_the_seed_only() -> None:
    one, same, other = (language_model(seed=seed).network.state_dict() for seed in (0, 0, 1))
    name = "model.embed_tokens.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_tokenizers_without_the_needed_tokens_are_refused(tmp_path: Path) -> None:
    bare = ScratchInit(vocabulary=300)(TEXTS, 5, torch.Generator()).vocabulary.tokenizer
    with pytest.raises(ValueError, match="codes=0: need 1 to 64000"):
        extend(bare, 0)
    with pytest.raises(ValueError, match=r"has no token <\|im_start\|>"):
        Vocabulary(Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(ValueError, match=r"language\.path=.*: need config\.json"):
        PretrainedInit(path=str(tmp_path))([], 5, torch.Generator())
