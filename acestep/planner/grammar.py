"""Grammar of the language model's output, as states over tokens: which tokens may come next.

Upstream's counterpart is ``constrained_logits_processor.py``. A field with a fixed set of values must use the tokens
that the tokenizer gives the value by itself; free text may use any tokens that decode to whole characters.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from acestep.planner.prompts import PLAN_FIELDS, plan_line
from acestep.planner.vocabulary import OPEN, Vocabulary
from acestep.songs.metadata import LANGUAGES, MAX_BPM, MIN_BPM, TIME_SIGNATURES

Tokens = Int[Tensor, " n"]
Device = torch.device | str

KEY_NAMES = tuple(
    f"{note}{accidental} {mode}"
    for note in "ABCDEFG"
    for accidental in ("", "#", "b", "♯", "♭")
    for mode in ("major", "minor")
)
DESCRIPTION_FIELDS = (*PLAN_FIELDS[:3], "genres", *PLAN_FIELDS[3:])

# Control characters, the line ends of str.splitlines, and what could open a code block, a plan or a token's name.
FORBIDDEN = frozenset(map(chr, [*range(9), *range(11, 32), 127, 0x85, 0x2028, 0x2029])) | {"`", "<", "\ufffd"}

POSITIONS: dict[str, Callable[[str, bool], bool]] = {
    "first": lambda text, _: text[:1] == " " and "\n" not in text and not text[1:2].isspace(),
    "lead": lambda text, unfinished: (unfinished if not text else not text[0].isspace()) and "\n" not in text,
    "inside": lambda text, _: "\n" not in text[:-1],
    "indent": lambda text, _: text[:1] == " " and "\n" not in text,
    "block": lambda text, _: True,
    "byte": lambda text, _: True,
}
"""Whether a token may come at a position of free text, given the text that it completes and whether it ends inside a
character. ``first``, ``lead``, ``inside``, ``indent``: of a value, before its space, before its first letter, within a
line, at the start of a further line; ``block``: anywhere in the lyrics; ``byte``: within a character, a single byte."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Values that a plan may have.

    Args:
        bpm: slowest and fastest tempo.
        seconds: shortest and longest duration.
        keys: names of keys.
        languages: language codes.
        time_signatures: beats in a bar.
        caption_tokens: longest caption, and longest list of genres.
        lyric_tokens: longest lyrics of a description.
    """

    bpm: tuple[int, int] = (MIN_BPM, MAX_BPM)
    seconds: tuple[int, int] = (10, 600)
    keys: tuple[str, ...] = KEY_NAMES
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
        """The values that field ``name`` may have; ``None`` if it is free text."""
        values: dict[str, Sequence[int | str]] = {
            "bpm": range(self.bpm[0], self.bpm[1] + 1),
            "duration": range(self.seconds[0], self.seconds[1] + 1),
            "keyscale": self.keys,
            "language": self.languages,
            "timesignature": self.time_signatures,
        }
        return values.get(name)


class GrammarState(Protocol):
    """A position in one segment of an output. Immutable, so that rows of a batch can share it."""

    @property
    def greedy(self) -> bool:
        """Whether the segment's tokens are the most probable instead of sampled."""
        ...

    @property
    def allowed(self) -> Tokens:
        """Tokens of this segment that may come next."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the segment may end here, so that the first tokens of the next segment may come too."""
        ...

    def advance(self, token: int) -> GrammarState:
        """The state after ``token``, which is one of ``allowed``."""
        ...


class GrammarMatcher:
    """A sequence of segments, given by their first states, and the position in it; advances with every token."""

    def __init__(self, segments: Sequence[GrammarState]) -> None:
        self._segments = [*segments]
        self._skip_complete()

    @property
    def done(self) -> bool:
        return not self._segments

    @property
    def greedy(self) -> bool:
        """Whether the next token is the most probable instead of sampled."""
        return self._segments[0].greedy

    @property
    def allowed(self) -> Tokens:
        """Tokens that may come next; never empty before the end."""
        state = self._segments[0]
        return torch.cat([state.allowed, self._segments[1].allowed]) if state.complete else state.allowed

    def advance(self, token: int) -> None:
        """Accept ``token``, one of ``allowed``."""
        if self._segments[0].complete and not (self._segments[0].allowed == token).any():
            self._segments.pop(0)
        self._segments[0] = self._segments[0].advance(token)
        self._skip_complete()

    def advance_forced(self) -> list[int]:
        """Advance while exactly one token is allowed; returns these tokens."""
        tokens = []
        while not self.done and len(self.allowed) == 1:
            tokens.append(int(self.allowed[0]))
            self.advance(tokens[-1])
        return tokens

    def _skip_complete(self) -> None:
        while self._segments and self._segments[0].complete and not len(self._segments[0].allowed):
            self._segments.pop(0)


@dataclass
class TrieNode:
    """A node of a prefix tree of tokens; the root of several texts' tree is the state of choosing one of them."""

    device: Device
    greedy: bool = False
    children: dict[int, TrieNode] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], device: Device, greedy: bool = False) -> TrieNode:
        """The root of the tree of ``texts``, none of which is a prefix of another."""
        root = cls(device, greedy)
        for tokens in texts:
            node = root
            for token in tokens:
                node = node.children.setdefault(token, cls(device, greedy))
        assert root.children, "no text to choose from"
        return root

    @cached_property
    def allowed(self) -> Tokens:
        return torch.tensor(list(self.children), dtype=torch.long, device=self.device)

    @property
    def complete(self) -> bool:
        return not self.children

    def advance(self, token: int) -> TrieNode:
        return self.children[token]


@dataclass(frozen=True)
class CodeSequence:
    """State: ``count`` more of the tokens ``codes``."""

    codes: Tokens
    count: int
    greedy: bool = False

    @property
    def allowed(self) -> Tokens:
        return self.codes if self.count else self.codes[:0]

    @property
    def complete(self) -> bool:
        return self.count == 0

    def advance(self, token: int) -> CodeSequence:
        return replace(self, count=self.count - 1)


class FreeTextTokens:
    """The text tokens that may come at each position of free text; every set is computed once.

    ``pending`` are the first bytes of a character whose other bytes are in the tokens to come.
    """

    def __init__(self, vocabulary: Vocabulary, device: Device = "cpu") -> None:
        self.bytes = vocabulary.token_bytes
        self._device = device
        self._text = vocabulary.text_tokens
        self._continuation = [token for token in self._text if 0x80 <= self.bytes[token][0] < 0xC0]
        self._single_bytes = {self.bytes[token]: token for token in reversed(self._text) if len(self.bytes[token]) == 1}
        self._cache: dict[tuple[str, bytes], Tokens] = {}
        self.newline = self._tensor([self._single_bytes[b"\n"]])
        self.none = self._tensor([])

    def at(self, position: str, pending: bytes = b"") -> Tokens:
        """Tokens that may come at ``position``, one of ``POSITIONS``."""
        if (position, pending) not in self._cache:
            fits, tokens = POSITIONS[position], []
            candidates = self._continuation if pending else self._text
            for token in self._single_bytes.values() if position == "byte" else candidates:
                decoded = decode_partial(pending + self.bytes[token])
                if decoded and fits(decoded[0], bool(decoded[1])):
                    tokens.append(token)
            self._cache[position, pending] = self._tensor(tokens)
        return self._cache[position, pending]

    def decode(self, pending: bytes, token: int) -> tuple[str, bytes]:
        """The characters that an allowed ``token`` completes, and the bytes that are pending after it."""
        decoded = decode_partial(pending + self.bytes[token])
        assert decoded is not None
        return decoded

    def _tensor(self, tokens: list[int]) -> Tokens:
        return torch.tensor(tokens, dtype=torch.long, device=self._device)


@dataclass(frozen=True)
class TextValue:
    """State: a field's free text of at most ``limit`` tokens: a space, then a line that is not empty.

    It may continue in further lines that start with a space, as YAML folds long values.
    """

    tokens: FreeTextTokens
    limit: int
    greedy: bool = False
    position: str = "first"
    pending: bytes = b""

    @property
    def complete(self) -> bool:
        """After a line break; a further line that starts with a space still belongs to the value."""
        return self.position == "indent"

    @property
    def allowed(self) -> Tokens:
        if self.limit > 0 or self.position in ("first", "lead"):
            return self.tokens.at(self.position, self.pending)
        if self.complete:
            return self.tokens.none
        return self.tokens.at("byte", self.pending) if self.pending else self.tokens.newline

    def advance(self, token: int) -> TextValue:
        text, pending = self.tokens.decode(self.pending, token)
        position = "indent" if text.endswith("\n") else "inside"
        if self.position in ("first", "lead") and not text.strip():
            position = "lead"
        return replace(self, limit=self.limit - 1, position=position, pending=pending)


@dataclass(frozen=True)
class TextBlock:
    """State: free text of at most ``limit`` tokens, then the token ``end``."""

    tokens: FreeTextTokens
    end: Tokens
    limit: int
    greedy: bool = False
    pending: bytes = b""
    complete: bool = False

    @property
    def allowed(self) -> Tokens:
        if self.complete:
            return self.tokens.none
        if self.limit <= 0:
            return self.tokens.at("byte", self.pending) if self.pending else self.end
        tokens = self.tokens.at("block", self.pending)
        return tokens if self.pending else torch.cat([tokens, self.end])

    def advance(self, token: int) -> TextBlock:
        if token == int(self.end):
            return replace(self, complete=True)
        return replace(self, limit=self.limit - 1, pending=self.tokens.decode(self.pending, token)[1])


def decode_partial(data: bytes) -> tuple[str, bytes] | None:
    """The characters of UTF-8 ``data`` and the bytes of an unfinished last one.

    ``None`` if ``data`` is not UTF-8 or has one of the ``FORBIDDEN`` characters.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None
    pending = decoder.getstate()[0]
    return (text, pending) if FORBIDDEN.isdisjoint(text) and _can_complete(pending) else None


def _can_complete(pending: bytes) -> bool:
    """Whether ``pending`` can become a character; the decoder also keeps bytes of surrogates, which cannot."""
    if not pending:
        return True
    missing = (2 if pending[0] < 0xE0 else 3 if pending[0] < 0xF0 else 4) - len(pending)
    return any((pending + missing * byte).decode(errors="ignore") for byte in (b"\x80", b"\xbf"))


class OutputGrammars:
    """Grammars of the outputs that ``rules`` allow; the prefix trees are built once."""

    def __init__(self, vocabulary: Vocabulary, rules: Rules, device: Device = "cpu") -> None:
        self._vocabulary = vocabulary
        self._rules = rules
        self._device = device
        self._free_text = FreeTextTokens(vocabulary, device)
        self._end = torch.tensor([vocabulary.end], device=device)
        self._codes = torch.arange(vocabulary.first_code, vocabulary.first_code + vocabulary.codes, device=device)
        # Upstream takes the most probable language and samples the other fields.
        self._choices = {
            name: TrieNode.of((self._line(name, value) for value in values), device, greedy=name == "language")
            for name in PLAN_FIELDS
            if (values := rules.values(name)) is not None
        }

    def plan(self, known: Mapping[str, Any], fields: Sequence[str] = PLAN_FIELDS) -> GrammarMatcher:
        """A plan of ``fields``; those in ``known`` have the value given there."""
        return GrammarMatcher(self._plan(known, fields))

    def codes(self, count: int) -> GrammarMatcher:
        """``count`` codes and the end token."""
        return GrammarMatcher([CodeSequence(self._codes, count), self._text([self._vocabulary.end])])

    def description(self, known: Mapping[str, Any]) -> GrammarMatcher:
        """A plan with genres, then lyrics."""
        lyrics = TextBlock(self._free_text, self._end, self._rules.lyric_tokens)
        blank = self._text(self._vocabulary.encode("\n\n"))
        return GrammarMatcher([*self._plan(known, DESCRIPTION_FIELDS), blank, lyrics])

    def _plan(self, known: Mapping[str, Any], fields: Sequence[str]) -> list[GrammarState]:
        segments: list[GrammarState] = [self._text(self._vocabulary.encode_lines(f"{OPEN}\n"))]
        for name in fields:
            if known.get(name) is not None:
                segments.append(self._text(self._line(name, known[name])))
            elif name in self._choices:
                segments.append(self._choices[name])
            else:
                segments.append(self._text(self._vocabulary.encode(f"{name}:")))
                segments.append(TextValue(self._free_text, self._rules.caption_tokens))
        return [*segments, self._text([self._vocabulary.close])]

    def _line(self, name: str, value: Any) -> list[int]:
        return self._vocabulary.encode_lines(plan_line(name, value))

    def _text(self, tokens: Sequence[int]) -> TrieNode:
        return TrieNode.of([tokens], self._device)
