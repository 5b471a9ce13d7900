"""Error rates of lyrics, against hand-counted cases and jiwer."""

from __future__ import annotations

import random

import pytest

from acestep.evaluation.metrics.edit_distance import characters, edits, words

jiwer = pytest.importorskip("jiwer", reason="a peer")


def test_one_substitution_and_one_deletion():
    found = edits(["a", "b", "c", "d"], ["a", "x", "c"])
    assert (found.substitutions, found.deletions, found.insertions) == (1, 1, 0)
    assert found.rate == 0.5


def test_more_heard_than_asked_for_is_above_one():
    assert edits(["a", "b"], ["a", "b", "c", "d", "e"]).rate == 1.5


def test_agrees_with_jiwer():
    draw = random.Random(0)
    for _ in range(40):
        asked, heard = ([draw.choice("abcde") for _ in range(draw.randint(1, 12))] for _ in range(2))
        peer = jiwer.process_words(" ".join(asked), " ".join(heard))
        ours = edits(asked, heard)
        assert ours.total == peer.substitutions + peer.deletions + peer.insertions
        assert ours.rate == pytest.approx(peer.wer)


def test_nothing_asked_for_has_no_rate():
    with pytest.raises(ValueError, match="at least one word"):
        _ = edits([], ["a"]).rate


def test_tags_case_and_punctuation_do_not_count_but_apostrophes_do():
    assert words("[Verse 1]\nDon’t  STOP, Straße!\n[chorus - soft]\nla-la") == ["don't", "stop", "strasse", "la", "la"]
    assert characters("[verse] 你好，世界 1") == ["你", "好", "世", "界", "1"]
    assert words("[instrumental]") == []
