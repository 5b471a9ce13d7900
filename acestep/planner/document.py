"""Which documents the language model may write: a plan, codes, or a description of codes.

Source: upstream ``constrained_logits_processor.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from acestep.planner.freetext import Line, Lines, Spelling
from acestep.planner.grammar import Choice, Codes, Machine, Segment
from acestep.planner.prompts import PLANNED, write_plan
from acestep.planner.vocabulary import CLOSE, OPEN, Vocabulary
from acestep.songs.metadata import LANGUAGES, MAX_BPM, MIN_BPM, TIME_SIGNATURES

KEYS = tuple(
    f"{note}{accidental} {mode}"
    for note in "ABCDEFG"
    for accidental in ("", "#", "b", "♯", "♭")
    for mode in ("major", "minor")
)
DESCRIBED = (*PLANNED[:3], "genres", *PLANNED[3:])


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a plan may say.

    Args:
        bpm: slowest and fastest tempo.
        seconds: shortest and longest duration.
        keys: keys by name.
        languages: by code.
        time_signatures: beats in a bar.
        caption_tokens: longest caption, and longest list of genres.
        lyric_tokens: longest lyrics of a description.
    """

    bpm: tuple[int, int] = (MIN_BPM, MAX_BPM)
    seconds: tuple[int, int] = (10, 600)
    keys: tuple[str, ...] = KEYS
    languages: tuple[str, ...] = tuple(LANGUAGES)
    time_signatures: tuple[str, ...] = TIME_SIGNATURES
    caption_tokens: int = 512
    lyric_tokens: int = 2048

    def __post_init__(self) -> None:
        for name in ("bpm", "seconds", "keys", "languages", "time_signatures"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("bpm", "seconds"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"planner.rules.{name}={[low, high]}: need 1 <= first <= second")
        for name in ("caption_tokens", "lyric_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"planner.rules.{name}={getattr(self, name)}: need at least 1")

    def values(self, name: str) -> Sequence[int | str] | None:
        """What field ``name`` may hold; ``None`` if it is free text."""
        return {
            "bpm": range(self.bpm[0], self.bpm[1] + 1),
            "duration": range(self.seconds[0], self.seconds[1] + 1),
            "keyscale": self.keys,
            "language": self.languages,
            "timesignature": self.time_signatures,
        }.get(name)


class Documents:
    """Machines for the documents that ``rules`` allow; the prefix trees are built once."""

    def __init__(self, vocabulary: Vocabulary, rules: Rules, device: torch.device | str = "cpu") -> None:
        self._vocabulary = vocabulary
        self._rules = rules
        self._device = device
        self._spelling = Spelling(vocabulary, device)
        self._end = torch.tensor([vocabulary.end], device=device)
        first = vocabulary.first_code
        self._codes = torch.arange(first, first + vocabulary.codes, device=device)
        self._choices = {name: self._choice(name) for name in PLANNED if rules.values(name) is not None}

    def plan(self, known: Mapping[str, Any], fields: Sequence[str] = PLANNED) -> Machine:
        """A plan of ``fields``, those that are ``known`` word for word."""
        return Machine([*self._plan(known, fields)])

    def codes(self, count: int) -> Machine:
        """``count`` codes and the end."""
        return Machine([Codes(self._codes, count), self._text([self._vocabulary.end])])

    def description(self, known: Mapping[str, Any]) -> Machine:
        """A plan with genres, then lyrics."""
        lyrics = Lines(self._spelling, self._end, self._rules.lyric_tokens)
        return Machine([*self._plan(known, DESCRIBED), self._text(self._vocabulary.encode("\n\n")), lyrics])

    def _plan(self, known: Mapping[str, Any], fields: Sequence[str]) -> list[Segment]:
        segments: list[Segment] = [self._text(self._vocabulary.encode_lines(f"{OPEN}\n"))]
        for name in fields:
            if known.get(name) is not None:
                segments.append(self._text(self._vocabulary.encode_lines(line(name, known[name]))))
            elif name in self._choices:
                segments.append(self._choices[name])
            else:
                segments.append(self._text(self._vocabulary.encode(f"{name}:")))
                segments.append(Line(self._spelling, self._rules.caption_tokens))
        return [*segments, self._text([self._vocabulary.close])]

    def _choice(self, name: str) -> Choice:
        values = self._rules.values(name) or ()
        texts = [self._vocabulary.encode_lines(line(name, value)) for value in values]
        # Upstream takes the likeliest language and draws the rest.
        return Choice(texts, greedy=name == "language", device=self._device)

    def _text(self, tokens: Sequence[int]) -> Choice:
        return Choice([tokens], device=self._device)


def line(name: str, value: Any) -> str:
    """A field as the plan's block writes it; a long value takes several lines."""
    if name not in PLANNED or isinstance(value, int):
        return f"{name}: {value}\n"
    return write_plan({name: value}).removeprefix(f"{OPEN}\n").removesuffix(CLOSE)
