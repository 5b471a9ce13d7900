"""Audio codes as the language model spells them: ``<|audio_code_N|>``, five to a second."""

from __future__ import annotations

import re
from collections.abc import Iterable

CODES = 64_000
"""How many there are; the vocabulary spells a few more, which mean nothing."""
CODES_PER_SECOND = 5

PATTERN = re.compile(r"<\|audio_code_(\d+)\|>")


def read_codes(text: str) -> list[int]:
    """The codes in ``text``, in order; what is no code is passed over, and codes too large become the largest.

    Source: upstream ``_parse_audio_code_string``.
    """
    return [min(int(number), CODES - 1) for number in PATTERN.findall(text)]


def write_codes(codes: Iterable[int]) -> str:
    """``codes`` as text.

    Raises:
        ValueError: if one is no code.
    """
    codes = list(codes)
    for code in codes:
        if not 0 <= code < CODES:
            raise ValueError(f"codes: {code} is none; need 0 to {CODES - 1}")
    return "".join(f"<|audio_code_{code}|>" for code in codes)
