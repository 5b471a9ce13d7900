"""Constrained decoding: only tokens that the grammar allows, with guidance, sampled from each song's own generator.

Source: upstream ``llm_inference.py``; as there, guidance is computed over the allowed tokens only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from transformers import LogitsProcessor, StoppingCriteria

from acestep.planner.grammar import GrammarMatcher


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Sampling settings, applied in this order: repetition penalty, ``top_k``, ``top_p``, ``temperature``.

    Args:
        temperature: divides the logits; 0 is greedy decoding.
        top_k: keep this many of the most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens whose probabilities add up to this; 1 keeps all.
        repetition_penalty: divides positive logits of tokens that occurred before, and multiplies negative ones.
        guidance: classifier-free guidance scale of the codes; 1 is without guidance.
    """

    temperature: float = 0.85
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    guidance: float = 2.0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature >= 0, ">= 0 (0 is greedy)"),
            ("top_k", self.top_k >= 0, ">= 0 (0 keeps all tokens)"),
            ("top_p", 0 < self.top_p <= 1, "0 < top_p <= 1 (1 keeps all tokens)"),
            ("repetition_penalty", self.repetition_penalty > 0, "> 0 (1 is none)"),
            ("guidance", self.guidance >= 1, ">= 1 (1 switches it off)"),
        )
        for name, is_valid, rule in rules:
            if not is_valid:
                raise ValueError(f"planner.decoding.{name}={getattr(self, name):g}: need {rule}")

    def sample(self, logits: Float[Tensor, "r n"], generators: Sequence[Generator]) -> Int[Tensor, " r"]:
        """The index of the sampled logit of each row. Draws one number from each row's generator."""
        if self.temperature == 0:
            return logits.argmax(1)
        kept, order = logits, None
        if self.top_k or self.top_p < 1:
            kept, order = logits.sort(descending=True, stable=True)
            kept = kept[:, : self.top_k or None]
        if self.top_p < 1:
            before = kept.softmax(1).cumsum(1).roll(1, 1)
            before[:, 0] = 0.0
            kept = kept.masked_fill(before >= self.top_p, -torch.inf)
        cumulative = (kept / self.temperature).softmax(1).cumsum(1)
        drawn = torch.stack([torch.rand(1, generator=one, device=one.device) for one in generators]).to(cumulative)
        index = torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True)
        last = kept.isfinite().sum(1, keepdim=True).clamp(min=1) - 1
        index = torch.minimum(index, last)
        return (index if order is None else order.gather(1, index)).flatten()


@dataclass(eq=False)
class GrammarLogitsProcessor(LogitsProcessor):
    """Leaves each row one token, sampled among those that its matcher allows.

    The tokens are sampled here and ``generate`` runs greedy search, so that a row's tokens do not depend on the rest
    of its batch. With guidance the batch holds every row twice, conditional rows first; both get the same token.
    """

    matchers: Sequence[GrammarMatcher]
    generators: Sequence[Generator]
    decoding: Decoding
    pad: int
    is_guided: bool
    _scores: Tensor | None = None  # reused in every step, since it is as large as the vocabulary
    _last: Tensor | None = None

    def __call__(self, input_ids: Int[Tensor, "r l"], scores: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """``scores`` with all but the sampled tokens at minus infinity; the next call overwrites the result."""
        chosen = [self.pad] * len(self.matchers)
        for rows, allowed in self._groups():
            tokens = self._choose(rows, allowed, input_ids, scores) if len(allowed) > 1 else allowed.tolist()
            for row, token in zip(rows, tokens * (len(rows) // len(tokens)), strict=True):
                chosen[row] = token
                self.matchers[row].advance(token)
        index = torch.tensor(chosen * (2 if self.is_guided else 1), device=scores.device)[:, None]
        if self._scores is None or self._last is None:
            self._scores = torch.full_like(scores, -torch.inf)
        else:
            self._scores.scatter_(1, self._last, -torch.inf)
        self._last = index
        return self._scores.scatter_(1, index, 0.0)

    def _groups(self) -> list[tuple[list[int], Tensor]]:
        """Unfinished rows, grouped by their tensor of allowed tokens."""
        groups: dict[tuple[int, bool], tuple[list[int], Tensor]] = {}
        for row, matcher in enumerate(self.matchers):
            if not matcher.done:
                allowed = matcher.allowed
                groups.setdefault((id(allowed), matcher.greedy), ([], allowed))[0].append(row)
        return list(groups.values())

    def _choose(self, rows: list[int], allowed: Tensor, input_ids: Tensor, scores: Tensor) -> list[int]:
        logits = _select(scores, rows, allowed)
        if self.is_guided:
            unconditional = _select(scores, [row + len(self.matchers) for row in rows], allowed)
            logits = unconditional + self.decoding.guidance * (logits - unconditional)
        if self.decoding.repetition_penalty != 1:
            used = torch.stack([torch.isin(allowed, input_ids[row]) for row in rows])
            penalty = self.decoding.repetition_penalty
            logits = torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        if self.matchers[rows[0]].greedy:
            index = logits.argmax(1)
        else:
            index = self.decoding.sample(logits, [self.generators[row] for row in rows])
        return cast("list[int]", allowed[index].tolist())


def _select(scores: Float[Tensor, "r v"], rows: list[int], allowed: Tensor) -> Float[Tensor, "k n"]:
    """The scores of the ``allowed`` tokens in ``rows``, which ascend."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return scores[rows[0] : rows[-1] + 1].index_select(1, allowed).float()
    return torch.stack([scores[row].index_select(0, allowed) for row in rows]).float()


# transformers inspects the signature at every token; a stored signature makes that fast.
GrammarLogitsProcessor.__call__.__signature__ = inspect.signature(GrammarLogitsProcessor.__call__)  # type: ignore[attr-defined]  # functions take attributes


@dataclass(eq=False)
class AllMatchersDone(StoppingCriteria):
    """Stops when every matcher is at its end."""

    matchers: Sequence[GrammarMatcher]

    def __call__(self, input_ids: Int[Tensor, "r l"], scores: object, **kwargs: object) -> Tensor:
        done = all(matcher.done for matcher in self.matchers)
        return torch.full((len(input_ids),), done, device=input_ids.device)
