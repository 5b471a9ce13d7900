"""What the language model is asked, word for word: messages, and the plan that its answer starts with.

Source: upstream ``llm_inference.py`` (``build_formatted_prompt`` and its neighbours) and ``constants.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

GENERATE = "Generate audio semantic tokens based on the given conditions:"
UNDERSTAND = "Understand the given musical conditions and describe the audio semantics accordingly:"
INSPIRE = "Expand the user's input into a more detailed and specific musical description:"
FORMAT = "Format the user's input into a more detailed and specific musical description:"

NOTHING_ASKED = "NO USER INPUT"
"""What upstream asks for where guidance needs a prompt that says nothing."""
EMPTY_PLAN = "<think>\n\n</think>"
PLANNED = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")


@dataclass(frozen=True)
class Question:
    """A conversation up to where the model goes on: both messages, and the plan if it is made already."""

    instruction: str
    content: str
    plan: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a tokenizer's chat template takes."""
        return [
            {"role": "system", "content": f"# Instruction\n{self.instruction}\n\n"},
            {"role": "user", "content": self.content},
        ]

    @property
    def text(self) -> str:
        """The conversation as Qwen's template renders it, the model's turn open."""
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in self.messages)
        return f"{turns}<|im_start|>assistant\n" + ("" if self.plan is None else f"{self.plan}\n\n")


def generate(caption: str, lyrics: str, plan: str | None = None) -> Question:
    """Ask for a plan; given a ``plan``, for the codes that follow it."""
    return Question(GENERATE, f"# Caption\n{caption}\n\n# Lyric\n{lyrics}\n", plan)


def without_plan(lyrics: str, negative: str = NOTHING_ASKED) -> Question:
    """The prompt that guidance moves away from while the plan is made: no caption, or a ``negative`` one."""
    if _says_something(negative):
        return generate(negative, lyrics)
    return Question(GENERATE, f"# Lyric\n{lyrics}\n")


def without_codes(caption: str, negative: str = NOTHING_ASKED) -> Question:
    """The same before the codes where no plan is written yet: the bare ``negative``, or the bare caption."""
    return Question(GENERATE, negative if _says_something(negative) else caption)


def unconditional(negative: str = NOTHING_ASKED) -> Question:
    """The prompt that guidance moves away from while codes are made: nothing asked, nothing planned."""
    return Question(GENERATE, negative if _says_something(negative) else NOTHING_ASKED, EMPTY_PLAN)


def unplanned(caption: str, lyrics: str, negative: str = NOTHING_ASKED) -> Question:
    """Upstream's older form of ``unconditional``: the same request without its plan (``use_legacy_cfg_prompt``)."""
    return generate(negative if _says_something(negative) else caption, lyrics, EMPTY_PLAN)


def understand(codes: str) -> Question:
    """Ask what music ``codes`` are."""
    return Question(UNDERSTAND, codes)


def inspire(query: str, instrumental: bool) -> Question:
    """Ask for a whole song from a few words."""
    return Question(INSPIRE, f"{query}\n\ninstrumental: {str(instrumental).lower()}")


def polish(caption: str, lyrics: str) -> Question:
    """Ask for a fuller wording of a caption and its lyrics (upstream ``format``)."""
    return Question(FORMAT, f"# Caption\n{caption}\n\n# Lyric\n{lyrics}")


def write_plan(metadata: Mapping[str, Any]) -> str:
    """The block that a plan is: known keys in order, as YAML folds them (``_format_metadata_as_cot``)."""
    known = {key: _plain(key, metadata[key]) for key in PLANNED if metadata.get(key) is not None}
    if not known:
        return EMPTY_PLAN
    return f"<think>\n{yaml.dump(known, allow_unicode=True, sort_keys=True).strip()}\n</think>"


def _plain(key: str, value: Any) -> Any:
    """``4/4`` as its beats, and digits as a number."""
    if key == "timesignature" and isinstance(value, str):
        value = value.removesuffix("/4")
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _says_something(negative: str) -> bool:
    return bool(negative.strip()) and negative.strip() != NOTHING_ASKED
