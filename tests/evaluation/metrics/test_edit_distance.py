"""Error rates of lyrics, against hand-counted cases and jiwer."""

from __future__ import annotations

import random

import pytest

from acestep.evaluation.metrics.edit_distance import edit_distance, lyric_characters, lyric_words

jiwer = pytest.importorskip("jiwer", reason="a peer")


def test_one_substitution_and_one_deletion():
    assert edit_distance(["a", "b", "c", "d"], ["a", "x", "c"]) == 2


def test_insertions_count():
    assert edit_distance(["a", "b"], ["a", "b", "c", "d", "e"]) == 3
    assert edit_distance([], ["a"]) == 1


def test_agrees_with_jiwer():
    draw = random.Random(0)
    for _ in range(40):
        target, transcribed = ([draw.choice("abcde") for _ in range(draw.randint(1, 12))] for _ in range(2))
        peer = jiwer.process_words(" ".join(target), " ".join(transcribed))
        edits = edit_distance(target, transcribed)
        assert edits == peer.substitutions + peer.deletions + peer.insertions
        assert edits / len(target) == pytest.approx(peer.wer)


def test_tags_case_and_punctuation_do_not_count_but_apostrophes_do():
    assert lyric_words("[Verse 1]\nDon’t  STOP, Straße!\n[chorus - soft]\nla-la") == [
        "don't",
        "stop",
        "strasse",
        "la",
        "la",
    ]
    assert lyric_characters("[verse] 你好，世界 1") == ["你", "好", "世", "界", "1"]
    assert lyric_words("[instrumental]") == []
