"""The condition encoder: text, lyric and timbre reference features to one packed sequence for cross-attention.

Shapes: B songs, Lt text tokens, Ll lyric tokens, N references of Tr frames in the batch, R most references of a song,
E width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from acestep.models.layers import Encoder, StackConfig
from acestep.types import Conditions


class LyricEncoder(Encoder):
    """Lyric token embeddings to lyric states; padding tokens are masked as keys."""

    def forward(self, lyrics: Float[Tensor, "b ll d"], mask: Bool[Tensor, "b ll"]) -> Float[Tensor, "b ll e"]:
        """States of all tokens; those of padding tokens are meaningless."""
        return self.encode(self.embed_tokens(lyrics), mask)


class TimbreEncoder(Encoder):
    """A reference's latents to one vector: the output at position 0.

    In the XL family that position is a learned token. The single-width family has the token in its checkpoints, but
    uses the first frame.
    """

    def __init__(self, config: StackConfig, features: int, depth: int, prepend: bool) -> None:
        super().__init__(config, features, depth)
        self.special_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.prepend = prepend

    def forward(self, references: Float[Tensor, "n tr c"]) -> Float[Tensor, "n e"]:
        x = self.embed_tokens(references)
        if self.prepend:
            x = torch.cat([self.special_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        return self.encode(x)[:, 0]


class ConditionEncoder(nn.Module):
    """Encodes text, lyrics and timbre and packs them (upstream ``AceStepConditionEncoder``)."""

    def __init__(
        self,
        config: StackConfig,
        *,
        text_features: int,
        timbre_features: int,
        lyric_layers: int,
        timbre_layers: int,
        timbre_token: bool,
    ) -> None:
        super().__init__()
        self.text_projector = nn.Linear(text_features, config.hidden_size, bias=False)
        self.lyric_encoder = LyricEncoder(config, text_features, lyric_layers)
        self.timbre_encoder = TimbreEncoder(config, timbre_features, timbre_layers, timbre_token)

    def forward(
        self,
        text: Float[Tensor, "b lt d"],
        text_mask: Bool[Tensor, "b lt"],
        lyrics: Float[Tensor, "b ll d"],
        lyrics_mask: Bool[Tensor, "b ll"],
        references: Float[Tensor, "n tr c"],
        reference_index: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, "b l e"], Bool[Tensor, "b l"]]:
        """States in the order lyrics, timbre, text, padding, and the mask of the valid ones."""
        text = self.text_projector(text)
        lyrics = self.lyric_encoder(lyrics, lyrics_mask)
        timbre, timbre_mask = group_references(self.timbre_encoder(references), reference_index, len(text))
        states, mask = pack_sequences(lyrics, lyrics_mask, timbre, timbre_mask)
        return pack_sequences(states, mask, text, text_mask)


def group_references(
    vectors: Float[Tensor, "n e"], index: Int[Tensor, " n"], songs: int
) -> tuple[Float[Tensor, "b r e"], Bool[Tensor, "b r"]]:
    """Vectors grouped by song ``index``, in order of appearance, zero-padded, and the mask of the valid ones."""
    one_hot = F.one_hot(index, songs)  # (N, B)
    place = (one_hot.cumsum(0) * one_hot).sum(1) - 1  # number of earlier references of the same song
    counts = one_hot.sum(0)
    most = int(counts.max())
    states = vectors.new_zeros(songs, most, vectors.shape[-1]).index_put((index, place), vectors)
    return states, torch.arange(most, device=index.device) < counts[:, None]


def pack_sequences(
    first: Float[Tensor, "b k e"],
    first_mask: Bool[Tensor, "b k"],
    second: Float[Tensor, "b m e"],
    second_mask: Bool[Tensor, "b m"],
) -> tuple[Float[Tensor, "b k+m e"], Bool[Tensor, "b k+m"]]:
    """Concatenate two sequences, valid rows first; the order among valid and among padding rows is kept."""
    states, mask = torch.cat([first, second], dim=1), torch.cat([first_mask, second_mask], dim=1)
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    states = states.gather(1, order.unsqueeze(-1).expand_as(states))
    return states, torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)


def null_condition(embedding: Float[Tensor, "1 1 e"], conditions: Conditions) -> Conditions:
    """The null (unconditional) condition: every state is the learned null embedding; context and masks stay."""
    states = embedding.to(conditions.states.dtype).expand_as(conditions.states)
    return replace(conditions, states=states)
