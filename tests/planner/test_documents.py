"""What the state machine lets through: every document that training writes, and nothing that is none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_language import vocabulary

from acestep.planner.answers import read_answer
from acestep.planner.document import KEYS, Documents, Rules
from acestep.planner.freetext import FORBIDDEN, Spelling, characters
from acestep.planner.grammar import Machine
from acestep.planner.prompts import PLANNED, write_plan
from acestep.songs.metadata import LANGUAGES

WORDS = vocabulary()
RULES = Rules()
DOCUMENTS = Documents(WORDS, RULES)
SHORT = [Documents(WORDS, Rules(caption_tokens=most, lyric_tokens=9)) for most in (1, 2, 5)]
PLANS = st.fixed_dictionaries(
    {
        "bpm": st.integers(30, 300),
        "caption": st.text(st.characters(exclude_characters="`<", exclude_categories=["C", "Z"]), min_size=1)
        | st.sampled_from(["a: b # c", "'quoted'", "静かなピアノ、夜の雨。", "slow strings, dark minor. " * 12]),
        "duration": st.integers(10, 600),
        "keyscale": st.sampled_from(KEYS),
        "language": st.sampled_from(list(LANGUAGES)),
        "timesignature": st.sampled_from(["2", "3", "4", "6"]),
    }
)


def walk(machine: Machine, tokens: list[int]) -> None:
    for token in tokens:
        assert not machine.done
        assert token in machine.allowed
        machine.advance(token)


@settings(max_examples=20, deadline=None)
@given(PLANS)
def test_every_plan_that_training_writes_may_be_written(plan: dict) -> None:
    machine = DOCUMENTS.plan({})
    walk(machine, WORDS.encode_lines(write_plan(plan)))
    assert machine.done


@settings(max_examples=10, deadline=None)
@given(PLANS)
@example(
    {"bpm": 30, "caption": "²", "duration": 10, "keyscale": "A major", "language": "ar", "timesignature": "2"}
)  # a digit, and no number
def test_what_is_known_is_written_word_for_word(plan: dict) -> None:
    machine = DOCUMENTS.plan(plan)
    assert WORDS.decode(machine.forced()) == write_plan(plan)
    assert machine.done


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
def test_what_is_no_plan_is_stopped_at_its_first_wrong_token(text: str) -> None:
    machine = DOCUMENTS.plan({})
    with pytest.raises(AssertionError):
        walk(machine, WORDS.encode_lines(text))


def test_a_value_may_end_only_where_it_is_in_range() -> None:
    machine = DOCUMENTS.plan({})
    walk(machine, WORDS.encode_lines("<think>\nbpm: 30"))
    allowed = {WORDS.spelling[token] for token in machine.allowed.tolist()}
    assert allowed == {b"\n", b"0"}
    machine.advance(WORDS.encode("0")[0])
    assert {WORDS.spelling[token] for token in machine.allowed.tolist()} == {b"\n"}


def test_codes_are_as_many_as_asked_and_then_the_end() -> None:
    machine = DOCUMENTS.codes(7)
    for code in range(7):
        assert machine.allowed.tolist() == WORDS.code_tokens(range(WORDS.codes))
        machine.advance(WORDS.first_code + code)
    assert machine.allowed.tolist() == [WORDS.end]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(SHORT))
def test_any_walk_ends_in_a_plan_that_parses(seed: int, documents: Documents) -> None:
    text = WORDS.decode(_drawn(documents.plan({}), seed))
    assert "\ufffd" not in text
    found = read_answer(text).metadata
    assert found.keys() == set(PLANNED)
    assert 30 <= found["bpm"] <= 300
    assert 10 <= found["duration"] <= 600
    assert found["keyscale"] in KEYS
    assert str(found["language"]).strip("'") in LANGUAGES
    assert str(found["timesignature"]) in RULES.time_signatures
    assert found["caption"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_any_walk_ends_in_a_description_that_parses(seed: int) -> None:
    answer = read_answer(WORDS.decode(_drawn(SHORT[2].description({"duration": 12}), seed)))
    assert answer.metadata.keys() == {*PLANNED, "genres"}
    assert answer.metadata["duration"] == 12
    assert not answer.codes
    assert "<|" not in answer.lyrics


def _drawn(machine: Machine, seed: int) -> list[int]:
    """Tokens drawn evenly from what is allowed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = machine.forced()
    while not machine.done:
        allowed = machine.allowed
        tokens.append(int(allowed[torch.randint(len(allowed), (), generator=generator)]))
        machine.advance(tokens[-1])
    return tokens


def test_free_text_is_whole_characters_only() -> None:
    assert characters("é".encode()) == ("é", b"")
    assert characters("aé".encode()[:-1]) == ("a", b"\xc3")
    assert characters(b"\xff") is None
    assert characters(b"\xed\xa0") is None  # half a surrogate
    assert all(characters(letter.encode()) is None for letter in FORBIDDEN)
    spelling = Spelling(WORDS)
    assert {spelling.bytes[token][0] & 0xC0 for token in spelling.follow("inside", b"\xe3").tolist()} == {0x80}


def test_rules_that_no_song_can_meet_are_refused() -> None:
    with pytest.raises(ValueError, match=r"planner\.rules\.seconds=\[20, 10\]: need 1 <= first <= second"):
        Rules(seconds=(20, 10))
