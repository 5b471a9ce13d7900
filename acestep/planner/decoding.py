"""How the next token is chosen: allowed ones only, guided, narrowed, and drawn from each song's own generator.

Source: upstream ``llm_inference.py``; guidance is evaluated only over allowed tokens, as there.
"""

from __future__ import annotations

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

    def pick(self, logits: Float[Tensor, " n"], generator: Generator) -> int:
        """The place of the chosen logit. Draws one number, wherever the logits are."""
        if self.temperature == 0:
            return int(logits.argmax())
        kept, places = logits, None
        if self.top_k or self.top_p < 1:
            kept, places = logits.sort(descending=True, stable=True)
            kept = kept[: self.top_k or None]
        if self.top_p < 1:
            before = kept.softmax(0).cumsum(0).roll(1)
            before[0] = 0.0
            kept = kept[before < self.top_p]
        total = (kept / self.temperature).softmax(0).cumsum(0)
        drawn = torch.rand(1, generator=generator, device=generator.device).to(total) * total[-1:]
        place = min(int(torch.searchsorted(total, drawn, right=True)), len(total) - 1)
        return place if places is None else int(places[place])


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

    def __call__(self, input_ids: Int[Tensor, "r l"], scores: Float[Tensor, "r v"]) -> Float[Tensor, "r v"]:
        """``scores`` with all but the chosen tokens at minus infinity."""
        chosen = [self._choose(row, input_ids, scores) for row in range(len(self.machines))]
        tokens = torch.tensor(chosen * (2 if self.guided else 1), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def _choose(self, row: int, input_ids: Tensor, scores: Tensor) -> int:
        machine = self.machines[row]
        if machine.done:
            return self.filler
        allowed = machine.allowed
        if len(allowed) == 1:
            token = int(allowed[0])
        else:
            logits = self._logits(row, allowed, input_ids, scores)
            at = int(logits.argmax()) if machine.greedy else self.decoding.pick(logits, self.generators[row])
            token = int(allowed[at])
        machine.advance(token)
        return token

    def _logits(self, row: int, allowed: Tensor, input_ids: Tensor, scores: Tensor) -> Float[Tensor, " n"]:
        logits = scores[row, allowed].float()
        if self.guided:
            unasked = scores[row + len(self.machines), allowed].float()
            logits = unasked + self.decoding.guidance * (logits - unasked)
        if self.decoding.repetition_penalty != 1:
            used = torch.isin(allowed, input_ids[row])
            penalty = self.decoding.repetition_penalty
            logits = torch.where(used, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        return logits


class Finished(StoppingCriteria):
    """Stops when every machine has come to its end."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = machines

    def __call__(self, input_ids: Int[Tensor, "r l"], scores: object, **kwargs: object) -> Tensor:
        """For every row, whether all are done."""
        done = all(machine.done for machine in self.machines)
        return torch.full((len(input_ids),), done, device=input_ids.device)
