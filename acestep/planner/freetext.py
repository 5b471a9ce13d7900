"""Free text in an answer: any tokens that make whole characters, and nothing that would end or forge a part of it."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from acestep.planner.grammar import Tokens
from acestep.planner.vocabulary import Vocabulary

# Controls, where str.splitlines would end a line, and what could open a block of code, a plan or a token's name.
FORBIDDEN = frozenset(map(chr, [*range(9), *range(11, 32), 127, 0x85, 0x2028, 0x2029])) | {"`", "<", "\ufffd"}

KINDS: dict[str, Callable[[str, bool], bool]] = {
    "first": lambda text, _: text[:1] == " " and "\n" not in text and not text[1:2].isspace(),
    "lead": lambda text, unfinished: (unfinished if not text else not text[0].isspace()) and "\n" not in text,
    "inside": lambda text, _: "\n" not in text[:-1],
    "indent": lambda text, _: text[:1] == " " and "\n" not in text,
    "lines": lambda text, _: True,
}
"""What may follow in which place, from the text that a token makes and whether it leaves a character unfinished."""


class Spelling:
    """The word tokens that may follow in each kind of place; every set is found once and kept.

    ``pending`` are the bytes so far of a character that is not whole yet.
    """

    def __init__(self, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> None:
        self.bytes = vocabulary.spelling
        self._device = device
        self._words = vocabulary.words
        self._joining = [token for token in self._words if 0x80 <= self.bytes[token][0] < 0xC0]
        self._singles = {self.bytes[token]: token for token in reversed(self._words) if len(self.bytes[token]) == 1}
        self._kept: dict[tuple[str, bytes], Tokens] = {}
        self.newline = self._tensor([self._singles[b"\n"]])
        self.none = self._tensor([])

    def follow(self, kind: str, pending: bytes = b"") -> Tokens:
        """Tokens that may follow in a place of ``kind``."""
        if (kind, pending) not in self._kept:
            tokens = self._joining if pending else self._words
            fits = KINDS[kind]
            found = []
            for token in tokens:
                made = characters(pending + self.bytes[token])
                if made and fits(made[0], bool(made[1])):
                    found.append(token)
            self._kept[kind, pending] = self._tensor(found)
        return self._kept[kind, pending]

    def finish(self, pending: bytes) -> Tokens:
        """Single bytes that bring an unfinished character nearer its end."""
        if ("finish", pending) not in self._kept:
            found = [token for byte, token in self._singles.items() if characters(pending + byte)]
            self._kept["finish", pending] = self._tensor(found)
        return self._kept["finish", pending]

    def _tensor(self, tokens: list[int]) -> Tokens:
        return torch.tensor(tokens, dtype=torch.long, device=self._device)


@dataclass(frozen=True)
class Line:
    """One value after its field's name, ``most`` tokens at most: a space, then a line that is not empty.

    As YAML folds long values, it may go on in further lines that start with a space.
    """

    spelling: Spelling
    most: int
    greedy: bool = False
    place: str = "first"
    pending: bytes = b""

    def start(self) -> Line:
        """Before the space."""
        return self

    @property
    def complete(self) -> bool:
        """After a line break: what follows with a space still belongs to it."""
        return self.place == "indent"

    @property
    def allowed(self) -> Tokens:
        """What may follow."""
        if self.most > 0 or self.place in ("first", "lead"):
            return self.spelling.follow(self.place, self.pending)
        if self.complete:
            return self.spelling.none
        return self.spelling.finish(self.pending) if self.pending else self.spelling.newline

    def advance(self, token: int) -> Line:
        """Over ``token``."""
        made = characters(self.pending + self.spelling.bytes[token])
        assert made is not None
        text, pending = made
        place = "indent" if text.endswith("\n") else "inside"
        if self.place in ("first", "lead") and not text.strip():
            place = "lead"
        return replace(self, most=self.most - 1, place=place, pending=pending)


@dataclass(frozen=True)
class Lines:
    """Text to the end of the answer, ``most`` tokens at most, then the token ``end``."""

    spelling: Spelling
    end: Tokens
    most: int
    greedy: bool = False
    pending: bytes = b""
    ended: bool = False

    def start(self) -> Lines:
        """Before all of it."""
        return self

    @property
    def complete(self) -> bool:
        """After the end."""
        return self.ended

    @property
    def allowed(self) -> Tokens:
        """What may follow."""
        if self.ended:
            return self.spelling.none
        if self.pending:
            return self.spelling.follow("lines", self.pending) if self.most > 0 else self.spelling.finish(self.pending)
        return torch.cat([self.spelling.follow("lines"), self.end]) if self.most > 0 else self.end

    def advance(self, token: int) -> Lines:
        """Over ``token``."""
        if token == int(self.end):
            return replace(self, ended=True)
        made = characters(self.pending + self.spelling.bytes[token])
        assert made is not None
        return replace(self, most=self.most - 1, pending=made[1])


def characters(data: bytes) -> tuple[str, bytes] | None:
    """The characters of ``data``, and the bytes of one that it leaves unfinished; ``None`` if it holds what may not be.

    What may not be: bytes that are no UTF-8, and the characters in ``FORBIDDEN``.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None
    pending = decoder.getstate()[0]
    if not FORBIDDEN.isdisjoint(text) or not _can_end(pending):
        return None
    return text, pending


def _can_end(pending: bytes) -> bool:
    """Whether more bytes can make a character of ``pending``; the decoder itself keeps halves of surrogates."""
    if not pending:
        return True
    missing = (2 if pending[0] < 0xE0 else 3 if pending[0] < 0xF0 else 4) - len(pending)
    for filler in (b"\x80", b"\xbf"):
        try:
            (pending + missing * filler).decode()
        except UnicodeDecodeError:
            continue
        return True
    return False
