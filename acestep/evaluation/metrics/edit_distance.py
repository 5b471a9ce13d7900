"""Words and characters of lyrics, and the edit distance between the requested and the transcribed ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from acestep.songs.metadata import SECTION_TAG

UNSPACED = frozenset({"zh", "ja", "ko", "th", "yue", "lo", "my", "km"})
"""Languages without spaces between words, or with optional ones: characters are compared."""


def edit_distance(target: Sequence[str], transcribed: Sequence[str]) -> int:
    """Levenshtein distance: the fewest substitutions, deletions and insertions from one sequence to the other."""
    previous = list(range(len(transcribed) + 1))
    for i, word in enumerate(target, 1):
        row = [i]
        for j, other in enumerate(transcribed, 1):
            row.append(min(previous[j - 1] + (word != other), previous[j] + 1, row[j - 1] + 1))
        previous = row
    return previous[-1]


def lyric_words(text: str) -> list[str]:
    """Words of lyrics, case-folded, without section tags and punctuation; apostrophes inside words stay."""
    text = unicodedata.normalize("NFKC", SECTION_TAG.sub(" ", text)).casefold().replace("\u2019", "'")
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text)


def lyric_characters(text: str) -> list[str]:
    """Letters and digits of lyrics in their order, without spaces."""
    return [letter for word in lyric_words(text) for letter in word if letter != "'"]
