"""How the next token is chosen: allowed ones only, guided, narrowed, and drawn from each song's own generator.

Source: upstream ``llm_inference.py``; guidance is evaluated only over allowed tokens, as there.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from transformers import LogitsProcessor, StoppingCriteria

from acestep.planner.grammar import Machine


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """In this order: repetition penalty, ``top_k``, ``top_p``, division by ``temperature``, one draw.

    Args:
        temperature: 0 takes the likeliest token.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this probability; 1 keeps all.
        repetition_penalty: divides positive logits of tokens that were used already, and multiplies negative ones.
        guidance: of the codes: 1 is the model itself, more moves away from what it says when nothing is asked.
    """

    temperature: float = 0.85
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    guidance: float = 2.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"planner.decoding.temperature={self.temperature:g}: need >= 0 (0 draws nothing)")
        if self.top_k < 0:
            raise ValueError(f"planner.decoding.top_k={self.top_k}: need >= 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"planner.decoding.top_p={self.top_p:g}: need 0 < top_p <= 1 (1 keeps all tokens)")
        if not self.repetition_penalty > 0:
            raise ValueError(f"planner.decoding.repetition_penalty={self.repetition_penalty:g}: need > 0 (1 is none)")
        if self.guidance < 1:
            raise ValueError(f"planner.decoding.guidance={self.guidance:g}: need >= 1 (1 switches it off)")

    def pick(self, logits: Float[Tensor, "r n"], generators: Sequence[Generator]) -> Int[Tensor, " r"]:
        """The place of each row's chosen logit. Draws one number for each row, wherever the logits are."""
        if self.temperature == 0:
            return logits.argmax(1)
        kept, places = logits, None
        if self.top_k or self.top_p < 1:
            kept, places = logits.sort(descending=True, stable=True)
            kept = kept[:, : self.top_k or None]
        if self.top_p < 1:
            before = kept.softmax(1).cumsum(1).roll(1, 1)
            before[:, 0] = 0.0
            kept = kept.masked_fill(before >= self.top_p, -torch.inf)
        total = (kept / self.temperature).softmax(1).cumsum(1)
        drawn = torch.stack([torch.rand(1, generator=one, device=one.device) for one in generators]).to(total)
        found = torch.searchsorted(total, drawn * total[:, -1:], right=True)
        last = kept.isfinite().sum(1, keepdim=True).clamp(min=1) - 1
        found = torch.minimum(found, last)
        return (found if places is None else places.gather(1, found)).flatten()


class Draws(LogitsProcessor):
    """Leaves each row one token: the one that its machine allows and its generator draws.

    With guidance the batch holds every row twice, asked first and not asked after; both get the same token. Greedy
    search then takes what is left, so that a row's tokens do not depend on what it is batched with.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        generators: Sequence[Generator],
        decoding: Decoding,
        filler: int,
        guided: bool,
    ) -> None:
        self.machines = machines
        self.generators = generators
        self.decoding = decoding
        self.filler = filler
        self.guided = guided
        self._left: Tensor | None = None  # large: one is enough for all steps
        self._before: Tensor | None = None

    def __call__(self, input_ids: Int[Tensor, "r l"], scores: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """``scores`` with all but the chosen tokens at minus infinity; the next call writes over it."""
        chosen = [self.filler] * len(self.machines)
        for rows, allowed in self._alike():
            tokens = self._choose(rows, allowed, input_ids, scores) if len(allowed) > 1 else allowed.tolist()
            for row, token in zip(rows, tokens * (len(rows) // len(tokens)), strict=True):
                chosen[row] = token
                self.machines[row].advance(token)
        left = torch.tensor(chosen * (2 if self.guided else 1), device=scores.device)[:, None]
        if self._left is None or self._before is None:
            self._left = torch.full_like(scores, -torch.inf)
        else:
            self._left.scatter_(1, self._before, -torch.inf)
        self._before = left
        return self._left.scatter_(1, left, 0.0)

    def _alike(self) -> list[tuple[list[int], Tensor]]:
        """The rows that are still written, together where the very same tokens are allowed."""
        found: dict[tuple[int, bool], tuple[list[int], Tensor]] = {}
        for row, machine in enumerate(self.machines):
            if not machine.done:
                allowed = machine.allowed
                found.setdefault((id(allowed), machine.greedy), ([], allowed))[0].append(row)
        return list(found.values())

    def _choose(self, rows: list[int], allowed: Tensor, input_ids: Tensor, scores: Tensor) -> list[int]:
        logits = _of(scores, rows, allowed)
        if self.guided:
            unasked = _of(scores, [row + len(self.machines) for row in rows], allowed)
            logits = unasked + self.decoding.guidance * (logits - unasked)
        if self.decoding.repetition_penalty != 1:
            used = torch.stack([torch.isin(allowed, input_ids[row]) for row in rows])
            penalty = self.decoding.repetition_penalty
            logits = torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        greedy = self.machines[rows[0]].greedy
        picked = logits.argmax(1) if greedy else self.decoding.pick(logits, [self.generators[row] for row in rows])
        return allowed[picked].tolist()


def _of(scores: Float[Tensor, "r v"], rows: list[int], allowed: Tensor) -> Float[Tensor, "k n"]:
    """What ``rows``, in rising order, of ``scores`` give the ``allowed`` tokens."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return scores[rows[0] : rows[-1] + 1].index_select(1, allowed).float()
    return torch.stack([scores[row].index_select(0, allowed) for row in rows]).float()


# transformers looks the signature up at every token, which is quick where it is written down.
Draws.__call__.__signature__ = inspect.signature(Draws.__call__)


class Finished(StoppingCriteria):
    """Stops when every machine has come to its end."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = machines

    def __call__(self, input_ids: Int[Tensor, "r l"], scores: object, **kwargs: object) -> Tensor:
        """For every row, whether all are done."""
        done = all(machine.done for machine in self.machines)
        return torch.full((len(input_ids),), done, device=input_ids.device)
