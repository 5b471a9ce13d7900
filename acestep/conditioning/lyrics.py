"""How long lyrics take to sing, roughly: a guess for warnings, used nowhere else."""

from __future__ import annotations

import re
import unicodedata

WORDS_A_SECOND = 3.0
"""Fast singing in languages that put spaces between words; most songs sing one to two words a second."""
LETTERS_A_SECOND = 5.0
"""The same where a letter is a syllable or a word: Chinese, Japanese, Korean, Thai and their neighbours."""

_TAG = re.compile(r"\[[^\]\n]*\]")
_WIDE = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


def seconds_to_sing(lyrics: str) -> float:
    """The least time that the words of ``lyrics`` take; structure tags such as ``[verse]`` take none."""
    words = unicodedata.normalize("NFC", _TAG.sub(" ", lyrics))
    letters = len(_WIDE.findall(words))
    return letters / LETTERS_A_SECOND + len(_WORD.findall(_WIDE.sub(" ", words))) / WORDS_A_SECOND
