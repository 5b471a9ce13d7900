"""The language model's loss: cross-entropy of the answer's tokens, in all and by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from acestep.planner.examples import GIVEN, PARTS, Lesson

CHUNK = 512
"""Tokens whose logits exist at a time: over 217,204 words they are what takes most memory."""


@dataclass(frozen=True)
class Lessons:
    """Lessons of one batch, padded on the right. ``parts`` is ``GIVEN`` on questions and padding."""

    tokens: Int[Tensor, "b l"]
    parts: Int[Tensor, "b l"]
    mask: Int[Tensor, "b l"]


@dataclass(frozen=True)
class Losses:
    """Sums of cross-entropy in nats, and numbers of tokens, by part."""

    totals: Float[Tensor, " p"]
    counts: Float[Tensor, " p"]

    @property
    def total(self) -> Float[Tensor, ""]:
        """Over all parts."""
        return self.totals.sum()

    @property
    def count(self) -> Float[Tensor, ""]:
        """Tokens of all parts."""
        return self.counts.sum()

    @property
    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """By name."""
        return {name: (self.totals[n], self.counts[n]) for n, name in enumerate(PARTS)}


def collate(lessons: Sequence[Lesson], pad: int) -> Lessons:
    """The lessons as one batch."""
    longest = max(len(lesson.tokens) for lesson in lessons)

    def padded(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return Lessons(
        tokens=torch.tensor([padded(lesson.tokens, pad) for lesson in lessons]),
        parts=torch.tensor([padded(lesson.parts, GIVEN) for lesson in lessons]),
        mask=torch.tensor([padded([1] * len(lesson.tokens), 0) for lesson in lessons]),
    )


def losses(network: PreTrainedModel, lessons: Lessons) -> Losses:
    """How surprised ``network`` is by the answers, each token given all before it."""
    states = network.get_decoder()(
        input_ids=lessons.tokens, attention_mask=lessons.mask, use_cache=False
    ).last_hidden_state
    learned = lessons.parts[:, 1:] != GIVEN
    states, targets, parts = states[:, :-1][learned], lessons.tokens[:, 1:][learned], lessons.parts[:, 1:][learned]
    head = network.get_output_embeddings()

    def surprise(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="none")

    chunks = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    each = torch.cat([checkpoint(surprise, *chunk, use_reentrant=False) for chunk in chunks])
    zeros = torch.zeros(len(PARTS), device=each.device)
    return Losses(zeros.index_add(0, parts, each), zeros.index_add(0, parts, torch.ones_like(each)))
