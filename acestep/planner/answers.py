"""What the language model answered: its plan, its codes, its words.

Source: upstream ``parse_lm_output`` and ``_extract_lyrics_from_output``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from acestep.planner.codes import PATTERN

NUMBERS = ("bpm", "duration")
_BLOCK = re.compile(r"<think>(.*?)</think>|<reasoning>(.*?)</reasoning>", re.DOTALL)
_FIELD = re.compile(r"(?P<key>[A-Za-z_]+):(?P<value>.*)")
_HEADER = re.compile(r"^#\s*Lyrics?\s*\n", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """``metadata`` by the plan's names, ``codes`` as text, ``lyrics`` as what follows the plan."""

    metadata: dict[str, int | str]
    codes: str
    lyrics: str


def read_answer(text: str) -> Answer:
    """The parts of an answer; parts that it does not have stay empty."""
    block = _BLOCK.search(text)
    plan = (block[1] or block[2] or "") if block else text.partition("<|audio_code_")[0]
    codes = "".join(found[0] for found in PATTERN.finditer(text))
    return Answer(_metadata(plan), codes, _lyrics(text[block.end() :]) if block else "")


def _metadata(plan: str) -> dict[str, int | str]:
    """Lines ``key: value``; lines that start with a space go on with the value before."""
    fields: dict[str, list[str]] = {}
    key = None
    for line in plan.splitlines():
        found = _FIELD.match(line)
        if found:
            key = found["key"].lower()
            fields[key] = [found["value"].strip()]
        elif key and line[:1].isspace() and line.strip():
            fields[key].append(line.strip())
    joined = {key: " ".join(parts).strip() for key, parts in fields.items()}
    return {
        key: int(value) if key in NUMBERS and value.isdecimal() else value for key, value in joined.items() if value
    }


def _lyrics(rest: str) -> str:
    return _HEADER.sub("", rest.strip()).removesuffix("<|im_end|>").strip()
