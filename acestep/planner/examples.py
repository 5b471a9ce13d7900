"""Training examples of the language model, their batches, and the cross-entropy by part of the output.

The layout is that of inference: the same prompts, then the plan block, a blank line, the codes and the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from acestep.planner import prompts
from acestep.planner.codes import write_codes
from acestep.planner.plan import plan_metadata, prompt_lyrics
from acestep.planner.vocabulary import CLOSE, OPEN, Vocabulary
from acestep.songs import Song

OUTPUT_PARTS = (*prompts.PLAN_FIELDS, "frame", "codes", "lyrics")
"""Parts of an output; ``frame`` are the tokens that every output has: tags, the blank line, the end."""
IGNORED = -1
"""Part index of prompt and padding tokens, which have no loss."""
CHUNK = 512
"""Tokens whose logits are in memory at a time: with a vocabulary of 217,204 they are the largest tensor."""

Parts = Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True)
class TrainingExample:
    """Tokens of a prompt and its target output, and for each the index of its part in ``OUTPUT_PARTS``."""

    tokens: list[int]
    parts: list[int]


def conditional_example(vocabulary: Vocabulary, song: Song, codes: Sequence[int]) -> TrainingExample:
    """Caption and lyrics to plan and codes."""
    output = [*_plan_parts(vocabulary, song), ("frame", vocabulary.encode("\n\n")), *_codes_parts(vocabulary, codes)]
    return _example(vocabulary, prompts.generation_prompt(song.caption, prompt_lyrics(song)), output)


def unconditional_example(vocabulary: Vocabulary, codes: Sequence[int]) -> TrainingExample:
    """The unconditional prompt of classifier-free guidance to codes, without a plan."""
    return _example(vocabulary, prompts.unconditional_prompt(), _codes_parts(vocabulary, codes))


def captioning_example(vocabulary: Vocabulary, song: Song, codes: Sequence[int]) -> TrainingExample:
    """Codes to the plan and the lyrics of their song."""
    lyrics = [("frame", vocabulary.encode("\n\n")), ("lyrics", vocabulary.encode(prompt_lyrics(song)))]
    output = [*_plan_parts(vocabulary, song), *lyrics, ("frame", [vocabulary.end])]
    return _example(vocabulary, prompts.understanding_prompt(write_codes(codes)), output)


def _plan_parts(vocabulary: Vocabulary, song: Song) -> Parts:
    fields = plan_metadata(song)
    lines = [
        (name, vocabulary.encode_lines(prompts.plan_line(name, fields[name])))
        for name in prompts.PLAN_FIELDS
        if fields[name] is not None
    ]
    return [("frame", vocabulary.encode_lines(f"{OPEN}\n")), *lines, ("frame", vocabulary.encode(CLOSE))]


def _codes_parts(vocabulary: Vocabulary, codes: Sequence[int]) -> Parts:
    return [("codes", vocabulary.code_tokens(codes)), ("frame", [vocabulary.end])]


def _example(vocabulary: Vocabulary, prompt: prompts.ChatPrompt, output: Parts) -> TrainingExample:
    tokens = vocabulary.encode(prompt.text)
    parts = [IGNORED] * len(tokens)
    for name, part in output:
        tokens += part
        parts += [OUTPUT_PARTS.index(name)] * len(part)
    return TrainingExample(tokens, parts)


@dataclass(frozen=True)
class ExampleBatch:
    """Examples padded on the right. ``parts`` is ``IGNORED`` on prompts and padding; ``mask`` is 1 on real tokens."""

    tokens: Int[Tensor, "b l"]
    parts: Int[Tensor, "b l"]
    mask: Int[Tensor, "b l"]


def collate_examples(examples: Sequence[TrainingExample], pad: int) -> ExampleBatch:
    """The examples as one batch, padded with token ``pad``."""

    def padded(rows: Sequence[Sequence[int]], value: int) -> Int[Tensor, "b l"]:
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    return ExampleBatch(
        tokens=padded([example.tokens for example in examples], pad),
        parts=padded([example.parts for example in examples], IGNORED),
        mask=padded([[1] * len(example.tokens) for example in examples], 0),
    )


@dataclass(frozen=True)
class PartLosses:
    """Sums of cross-entropy in nats, and numbers of tokens, for each of ``OUTPUT_PARTS``."""

    totals: Float[Tensor, " p"]
    counts: Float[Tensor, " p"]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.totals.sum()

    @property
    def count(self) -> Float[Tensor, ""]:
        return self.counts.sum()

    @property
    def parts(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Total and count of each part, by name."""
        return dict(zip(OUTPUT_PARTS, zip(self.totals, self.counts, strict=True), strict=True))


def losses_by_part(network: PreTrainedModel, batch: ExampleBatch) -> PartLosses:
    """Next-token cross-entropy of ``network`` on the output tokens of ``batch``, summed by part."""
    decoder = network.get_decoder()
    states = decoder(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).last_hidden_state
    is_output = batch.parts[:, 1:] != IGNORED
    states, targets, parts = states[:, :-1][is_output], batch.tokens[:, 1:][is_output], batch.parts[:, 1:][is_output]
    head = network.get_output_embeddings()

    def cross_entropy(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="none")

    chunks = zip(states.split(CHUNK), targets.split(CHUNK), strict=True)
    losses = torch.cat([checkpoint(cross_entropy, *chunk, use_reentrant=False) for chunk in chunks])
    zeros = torch.zeros(len(OUTPUT_PARTS), device=losses.device)
    return PartLosses(zeros.index_add(0, parts, losses), zeros.index_add(0, parts, torch.ones_like(losses)))
