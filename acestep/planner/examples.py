"""What the language model learns from: a question, and the answer it should have given, token by token.

The layout is that of inference: the same questions, and the same plan block, blank line, codes and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acestep.planner import prompts
from acestep.planner.codes import write_codes
from acestep.planner.document import line
from acestep.planner.plan import asked_lyrics, metadata
from acestep.planner.vocabulary import CLOSE, OPEN, Vocabulary
from acestep.types import Song

PARTS = (*prompts.PLANNED, "frame", "codes", "lyrics")
"""Parts of an answer; ``frame`` is what is the same in every one: tags, the blank line, the end."""
GIVEN = -1
"""In ``Lesson.parts``: a token of the question, which nothing is learned about."""


@dataclass(frozen=True)
class Lesson:
    """Tokens of a question and its answer, and the part that each is of."""

    tokens: list[int]
    parts: list[int]


def compose(vocabulary: Vocabulary, song: Song, codes: Sequence[int]) -> Lesson:
    """A request, answered with its plan and its codes."""
    question = prompts.generate(song.caption, asked_lyrics(song))
    answer = [*_plan(vocabulary, song), ("frame", vocabulary.encode("\n\n")), *_music(vocabulary, codes)]
    return _lesson(vocabulary, question, answer)


def improvise(vocabulary: Vocabulary, codes: Sequence[int]) -> Lesson:
    """Nothing asked and nothing planned, answered with codes: what guidance moves away from."""
    return _lesson(vocabulary, prompts.unconditional(), _music(vocabulary, codes))


def listen(vocabulary: Vocabulary, song: Song, codes: Sequence[int]) -> Lesson:
    """Codes, answered with the plan and the lyrics of their song."""
    words = [("frame", vocabulary.encode("\n\n")), ("lyrics", vocabulary.encode(asked_lyrics(song)))]
    answer = [*_plan(vocabulary, song), *words, ("frame", [vocabulary.end])]
    return _lesson(vocabulary, prompts.understand(write_codes(codes)), answer)


def _plan(vocabulary: Vocabulary, song: Song) -> list[tuple[str, list[int]]]:
    fields = {name: value for name, value in metadata(song).items() if value is not None}
    lines = [(name, vocabulary.encode_lines(line(name, fields[name]))) for name in prompts.PLANNED if name in fields]
    return [("frame", vocabulary.encode_lines(f"{OPEN}\n")), *lines, ("frame", vocabulary.encode(CLOSE))]


def _music(vocabulary: Vocabulary, codes: Sequence[int]) -> list[tuple[str, list[int]]]:
    return [("codes", vocabulary.code_tokens(codes)), ("frame", [vocabulary.end])]


def _lesson(vocabulary: Vocabulary, question: prompts.Question, answer: Sequence[tuple[str, Sequence[int]]]) -> Lesson:
    asked = vocabulary.encode(question.text)
    tokens, parts = list(asked), [GIVEN] * len(asked)
    for name, written in answer:
        tokens += written
        parts += [PARTS.index(name)] * len(written)
    return Lesson(tokens, parts)
