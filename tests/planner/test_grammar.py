"""The grammar allows every output of the training data, and no invalid output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_language import vocabulary

from acestep.planner.grammar import (
    FORBIDDEN,
    KEY_NAMES,
    FreeTextTokens,
    GrammarMatcher,
    OutputGrammars,
    Rules,
    decode_partial,
)
from acestep.planner.prompts import PLAN_FIELDS, parse_output, write_plan
from acestep.songs.metadata import LANGUAGES

WORDS = vocabulary()
RULES = Rules()
GRAMMARS = OutputGrammars(WORDS, RULES)
SHORT = [OutputGrammars(WORDS, Rules(caption_tokens=most, lyric_tokens=9)) for most in (1, 2, 5)]
PLANS = st.fixed_dictionaries(
    {
        "bpm": st.integers(30, 300),
        "caption": st.text(st.characters(exclude_characters="`<", exclude_categories=["C", "Z"]), min_size=1)
        | st.sampled_from(["a: b # c", "'quoted'", "静かなピアノ、夜の雨。", "slow strings, dark minor. " * 12]),
        "duration": st.integers(10, 600),
        "keyscale": st.sampled_from(KEY_NAMES),
        "language": st.sampled_from(list(LANGUAGES)),
        "timesignature": st.sampled_from(["2", "3", "4", "6"]),
    }
)


def accept(matcher: GrammarMatcher, tokens: list[int]) -> None:
    for token in tokens:
        assert not matcher.done
        assert token in matcher.allowed
        matcher.advance(token)


@settings(max_examples=20, deadline=None)
@given(PLANS)
def test_the_grammar_allows_every_plan_of_training(plan: dict) -> None:
    matcher = GRAMMARS.plan({})
    accept(matcher, WORDS.encode_lines(write_plan(plan)))
    assert matcher.done


@settings(max_examples=10, deadline=None)
@given(PLANS)
@example(
    {"bpm": 30, "caption": "²", "duration": 10, "keyscale": "A major", "language": "ar", "timesignature": "2"}
)  # isdigit(), but not a number
def test_known_fields_are_forced_verbatim(plan: dict) -> None:
    matcher = GRAMMARS.plan(plan)
    assert WORDS.decode(matcher.advance_forced()) == write_plan(plan)
    assert matcher.done


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nbpm: 301\n",
        "<think>\nbpm: 29\n",
        "<think>\nbpm: 120\nduration: 30\n",
        "<think>\nbpm: 120\ncaption: \n",
        "<think>\nbpm: 120\ncaption: a <b\n",
        "<think>\nbpm: 120\ncaption: a ```\n",
        "<think>\nbpm: 120\ncaption: a\nb\n",
        "<think>\nbpm: 120\ncaption: a\nduration: 9\n",
        "<think>\nbpm: 120\ncaption: a\nduration: 601\n",
        "<think>\nbpm: 120\ncaption: a\nduration: 60\nkeyscale: H major\n",
    ],
)
def test_the_grammar_rejects_invalid_plans_at_the_first_wrong_token(text: str) -> None:
    matcher = GRAMMARS.plan({})
    with pytest.raises(AssertionError):
        accept(matcher, WORDS.encode_lines(text))


def test_a_number_may_end_only_where_it_is_in_range() -> None:
    matcher = GRAMMARS.plan({})
    accept(matcher, WORDS.encode_lines("<think>\nbpm: 30"))
    allowed = {WORDS.token_bytes[token] for token in matcher.allowed.tolist()}
    assert allowed == {b"\n", b"0"}
    matcher.advance(WORDS.encode("0")[0])
    assert {WORDS.token_bytes[token] for token in matcher.allowed.tolist()} == {b"\n"}


def test_the_code_grammar_has_count_codes_and_the_end_token() -> None:
    matcher = GRAMMARS.codes(7)
    for code in range(7):
        assert matcher.allowed.tolist() == WORDS.code_tokens(range(WORDS.codes))
        matcher.advance(WORDS.first_code + code)
    assert matcher.allowed.tolist() == [WORDS.end]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(SHORT))
def test_random_allowed_tokens_give_a_plan_that_parses(seed: int, grammars: OutputGrammars) -> None:
    text = WORDS.decode(_sample(grammars.plan({}), seed))
    assert "\ufffd" not in text
    found = parse_output(text).metadata
    assert found.keys() == set(PLAN_FIELDS)
    assert 30 <= found["bpm"] <= 300
    assert 10 <= found["duration"] <= 600
    assert found["keyscale"] in KEY_NAMES
    assert str(found["language"]).strip("'") in LANGUAGES
    assert str(found["timesignature"]) in RULES.time_signatures
    assert found["caption"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_random_allowed_tokens_give_a_description_that_parses(seed: int) -> None:
    answer = parse_output(WORDS.decode(_sample(SHORT[2].description({"duration": 12}), seed)))
    assert answer.metadata.keys() == {*PLAN_FIELDS, "genres"}
    assert answer.metadata["duration"] == 12
    assert not answer.codes
    assert "<|" not in answer.lyrics


def _sample(matcher: GrammarMatcher, seed: int) -> list[int]:
    """Tokens drawn uniformly from the allowed ones."""
    generator = torch.Generator().manual_seed(seed)
    tokens = matcher.advance_forced()
    while not matcher.done:
        allowed = matcher.allowed
        tokens.append(int(allowed[torch.randint(len(allowed), (), generator=generator)]))
        matcher.advance(tokens[-1])
    return tokens


def test_free_text_consists_of_complete_characters() -> None:
    assert decode_partial("é".encode()) == ("é", b"")
    assert decode_partial("aé".encode()[:-1]) == ("a", b"\xc3")
    assert decode_partial(b"\xff") is None
    assert decode_partial(b"\xed\xa0") is None  # start of a surrogate
    assert all(decode_partial(letter.encode()) is None for letter in FORBIDDEN)
    tokens = FreeTextTokens(WORDS)
    assert {tokens.bytes[token][0] & 0xC0 for token in tokens.at("inside", b"\xe3").tolist()} == {0x80}


def test_rules_with_an_empty_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"planner\.rules\.seconds=\[20, 10\]: need 1 <= first <= second"):
        Rules(seconds=(20, 10))
