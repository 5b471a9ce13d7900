"""Text that the language model reads and writes: chat prompts, plan blocks, and the parser of its output.

Source: upstream ``llm_inference.py`` (``build_formatted_prompt`` and its variants, ``parse_lm_output``,
``_extract_lyrics_from_output``) and ``constants.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from acestep.planner.vocabulary import CLOSE, END, OPEN, START

GENERATE = "Generate audio semantic tokens based on the given conditions:"
UNDERSTAND = "Understand the given musical conditions and describe the audio semantics accordingly:"

NO_USER_INPUT = "NO USER INPUT"
"""Upstream's user message of an unconditional prompt."""
EMPTY_PLAN = f"{OPEN}\n\n{CLOSE}"
PLAN_FIELDS = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")
"""Keys of a plan, in the order in which it lists them."""

_CODE = re.compile(r"<\|audio_code_(\d+)\|>")
_PLAN_BLOCK = re.compile(r"<think>(.*?)</think>|<reasoning>(.*?)</reasoning>", re.DOTALL)
_FIELD = re.compile(r"(?P<key>[A-Za-z_]+):(?P<value>.*)")
_LYRICS_HEADER = re.compile(r"^#\s*Lyrics?\s*\n", re.IGNORECASE)


@dataclass(frozen=True)
class ChatPrompt:
    """System and user message, and the start of the model's turn: the plan block, if it is written already."""

    instruction: str
    content: str
    plan: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages as a tokenizer's chat template takes them."""
        return [
            {"role": "system", "content": f"# Instruction\n{self.instruction}\n\n"},
            {"role": "user", "content": self.content},
        ]

    @property
    def text(self) -> str:
        """The prompt as Qwen's chat template renders it with a generation prompt."""
        turns = "".join(f"{START}{turn['role']}\n{turn['content']}{END}\n" for turn in self.messages)
        return f"{turns}{START}assistant\n" + ("" if self.plan is None else f"{self.plan}\n\n")


def generation_prompt(caption: str, lyrics: str, plan: str | None = None) -> ChatPrompt:
    """The prompt for a plan; with a ``plan``, for the codes that follow it."""
    return ChatPrompt(GENERATE, f"# Caption\n{caption}\n\n# Lyric\n{lyrics}\n", plan)


def unconditional_prompt(negative: str = NO_USER_INPUT) -> ChatPrompt:
    """The unconditional prompt of classifier-free guidance of codes: ``negative`` and an empty plan."""
    content = NO_USER_INPUT if negative.strip() in ("", NO_USER_INPUT) else negative
    return ChatPrompt(GENERATE, content, EMPTY_PLAN)


def understanding_prompt(codes: str) -> ChatPrompt:
    """The prompt for a description of ``codes``."""
    return ChatPrompt(UNDERSTAND, codes)


def write_plan(metadata: Mapping[str, Any]) -> str:
    """The plan block of the known fields, folded as YAML does (upstream ``_format_metadata_as_cot``)."""
    known = {key: _plan_value(key, metadata[key]) for key in PLAN_FIELDS if metadata.get(key) is not None}
    if not known:
        return EMPTY_PLAN
    return f"{OPEN}\n{yaml.dump(known, allow_unicode=True, sort_keys=True).strip()}\n{CLOSE}"


def plan_line(name: str, value: Any) -> str:
    """One field as the plan block writes it; a long value takes several lines."""
    if name not in PLAN_FIELDS or isinstance(value, int):
        return f"{name}: {value}\n"
    return write_plan({name: value}).removeprefix(f"{OPEN}\n").removesuffix(CLOSE)


def _plan_value(key: str, value: Any) -> Any:
    """``4/4`` as its beats, and digits as a number."""
    if key == "timesignature" and isinstance(value, str):
        value = value.removesuffix("/4")
    return int(value) if isinstance(value, str) and value.isdecimal() else value


@dataclass(frozen=True)
class ParsedOutput:
    """``metadata`` by the plan's keys, ``codes`` as text, ``lyrics``: the text after the plan block."""

    metadata: dict[str, int | str]
    codes: str
    lyrics: str


def parse_output(text: str) -> ParsedOutput:
    """Split the model's output into its parts; missing parts stay empty."""
    block = _PLAN_BLOCK.search(text)
    plan = (block[1] or block[2] or "") if block else text.partition("<|audio_code_")[0]
    lyrics = _LYRICS_HEADER.sub("", text[block.end() :].strip()).removesuffix(END).strip() if block else ""
    return ParsedOutput(_parse_fields(plan), "".join(found[0] for found in _CODE.finditer(text)), lyrics)


def _parse_fields(plan: str) -> dict[str, int | str]:
    """Lines ``key: value``; a line that starts with a space continues the value above it."""
    fields: dict[str, str] = {}
    key = None
    for line in plan.splitlines():
        if found := _FIELD.match(line):
            key = found["key"].lower()
            fields[key] = found["value"].strip()
        elif key and line[:1].isspace():
            fields[key] = f"{fields[key]} {line.strip()}".strip()
    numbers = ("bpm", "duration")
    return {
        key: int(value) if key in numbers and value.isdecimal() else value for key, value in fields.items() if value
    }
