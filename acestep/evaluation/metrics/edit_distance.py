"""Words and characters of lyrics, and how many edits lie between what was asked for and what was heard."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TAG = re.compile(r"\[[^\]\n]*\]")
UNSPACED = frozenset({"zh", "ja", "ko", "th", "yue", "lo", "my", "km"})
"""Languages whose words no space divides, or whose spaces people set as they like: the characters are compared."""


@dataclass(frozen=True)
class Edits:
    """Fewest edits between two sequences, and the length of the one asked for."""

    substitutions: int
    deletions: int
    insertions: int
    length: int

    @property
    def total(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits by length: 0 for a perfect match, above 1 where more was heard than asked for."""
        if self.length == 0:
            raise ValueError("an error rate needs at least one word to be asked for")
        return self.total / self.length


def edits(asked: Sequence[str], heard: Sequence[str]) -> Edits:
    """Levenshtein's distance with its kinds of edits; among equally short ways, substitutions go first."""
    width = len(heard) + 1
    cost = np.zeros((len(asked) + 1, width), np.int64)
    cost[:, 0], cost[0] = np.arange(len(asked) + 1), np.arange(width)
    for i, word in enumerate(asked, 1):
        for j, other in enumerate(heard, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (word != other), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    i, j = len(asked), len(heard)
    kinds = [0, 0, 0]
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (asked[i - 1] != heard[j - 1]):
            kinds[0] += asked[i - 1] != heard[j - 1]
            i, j = i - 1, j - 1
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            kinds[1] += 1
            i -= 1
        else:
            kinds[2] += 1
            j -= 1
    return Edits(*map(int, kinds), len(asked))


def words(text: str) -> list[str]:
    """Words of lyrics, one case, without section tags and punctuation; apostrophes inside words stay."""
    text = unicodedata.normalize("NFKC", TAG.sub(" ", text)).casefold().replace("\u2019", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def characters(text: str) -> list[str]:
    """Letters and digits of lyrics in their order, without spaces."""
    return [letter for word in words(text) for letter in word if letter != "'"]
