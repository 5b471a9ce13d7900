"""What the language model may write next: a state machine over tokens, segment by segment.

Texts to choose from are compared as the tokenizer spells them by itself, never as other tokens that would read the
same; free text may be any tokens that make whole characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

Tokens = Int[Tensor, " n"]


class State(Protocol):
    """A place in a segment, a value that rows may share."""

    @property
    def allowed(self) -> Tokens:
        """Tokens of this segment that may follow."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the segment may end here: then what the next one begins with may follow too."""
        ...

    def advance(self, token: int) -> State:
        """The state after ``token``, which is one of ``allowed``."""
        ...


class Segment(Protocol):
    """A part of an answer. Where ``greedy``, its tokens are the likeliest rather than drawn."""

    greedy: bool

    def start(self) -> State:
        """Before its first token."""
        ...


class Machine:
    """Segments one after another; moves with every token that is written."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        self._at = 0
        self._state: State | None = segments[0].start()
        self._settle()

    @property
    def done(self) -> bool:
        """Whether all is written."""
        return self._state is None

    @property
    def greedy(self) -> bool:
        """Whether the next token is the likeliest rather than drawn."""
        return self._segments[self._at].greedy

    @property
    def allowed(self) -> Tokens:
        """Tokens that may follow; never none before all is written."""
        assert self._state is not None
        own = self._state.allowed
        if not self._state.complete:
            return own
        return torch.cat([own, self._segments[self._at + 1].start().allowed])

    def advance(self, token: int) -> None:
        """Move over ``token``, one of ``allowed``."""
        assert self._state is not None
        if self._state.complete and not (self._state.allowed == token).any():
            self._next()
        self._state = self._state.advance(token)
        self._settle()

    def forced(self) -> list[int]:
        """Move over all that can only be written in one way; returns it."""
        tokens = []
        while not self.done and len(self.allowed) == 1:
            tokens.append(int(self.allowed[0]))
            self.advance(tokens[-1])
        return tokens

    def _settle(self) -> None:
        """Leave segments that cannot go on."""
        while self._state is not None and self._state.complete and not len(self._state.allowed):
            self._next()

    def _next(self) -> None:
        self._at += 1
        self._state = self._segments[self._at].start() if self._at < len(self._segments) else None


@dataclass
class Node:
    """A state of ``Choice``: a node of the prefix tree."""

    device: torch.device | str
    children: dict[int, Node] = field(default_factory=dict)
    _allowed: Tokens | None = None

    @property
    def allowed(self) -> Tokens:
        """The tokens that lead on."""
        if self._allowed is None:
            self._allowed = torch.tensor(list(self.children), dtype=torch.long, device=self.device)
        return self._allowed

    @property
    def complete(self) -> bool:
        """At a leaf."""
        return not self.children

    def advance(self, token: int) -> Node:
        """The child."""
        return self.children[token]


class Choice:
    """One of some texts, none of which is the beginning of another, by the prefix tree of their tokens."""

    def __init__(
        self, texts: Iterable[Sequence[int]], greedy: bool = False, device: torch.device | str = "cpu"
    ) -> None:
        self.greedy = greedy
        self._root = Node(device)
        for tokens in texts:
            node = self._root
            for token in tokens:
                node = node.children.setdefault(token, Node(device))
        assert self._root.children, "no text to choose from"

    def start(self) -> Node:
        """The root."""
        return self._root


@dataclass(frozen=True)
class Codes:
    """Exactly ``count`` of the tokens ``codes``."""

    codes: Tokens
    count: int
    greedy: bool = False

    def start(self) -> Codes:
        """All of them to come."""
        return self

    @property
    def allowed(self) -> Tokens:
        """Any code, until there are enough."""
        return self.codes if self.count else self.codes[:0]

    @property
    def complete(self) -> bool:
        """Whether there are enough."""
        return self.count == 0

    def advance(self, token: int) -> Codes:
        """One less to come."""
        return Codes(self.codes, self.count - 1, self.greedy)
