"""Lyric alignment: how monotonically a model's cross-attention follows the lyrics over the song.

One pass of the decoder without guidance over the song's latents with a little noise (upstream
``core/generation/handler/lyric_score.py``); the mean over the alignment heads is scored by dynamic time warping
(upstream ``core/scoring/dit_score.py``).

The score is not calibrated: a perfect alignment of N tokens to F frames scores F / (F + N - 1). Compare it at equal
lyrics and equal duration only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acestep.audio.audio import Audio
from acestep.conditioning.prompt import END, render_prompt
from acestep.evaluation.embedders.base import FeatureExtractor, Features, MissingWeightsError
from acestep.evaluation.hashing import digest
from acestep.evaluation.metrics.base import Scores, SongMetric
from acestep.evaluation.metrics.edit_distance import lyric_words
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.samples import pipeline_fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.songs.metadata import SECTION_TAG

HEADS_2B = {2: (6,), 3: (10, 11), 4: (3,), 5: (8, 9), 6: (8,)}
"""Heads of the 2B checkpoints that follow the lyrics (upstream's default). Those of XL differ and are unpublished."""
NOISE_SEED = 42
ATTENDED = 0.1
"""Attention, as a share of the largest, from which a token counts as covered."""
TRACE = 0.01
"""Attention below which a frame does not count for a token's centre."""
BACKWARD_FRAMES = 9.0
"""Step backwards that still counts as monotonic."""


@dataclass(frozen=True, kw_only=True)
class LyricAlignment(SongMetric):
    """Upstream's lyric alignment score. Compare it at equal lyrics and duration only.

    Attributes:
        weights: checkpoint whose attention is measured: the same one for all songs, whatever generated them.
        heads: heads that follow the lyrics, by layer.
        steps: the noise level is that of the last of so many steps.
        device: device of the checkpoint.
    """

    weights: str = ""
    heads: Mapping[int, Sequence[int]] = field(default_factory=lambda: HEADS_2B)
    steps: int = 50
    device: str = "cpu"
    uses_prompt = False

    @cached_property
    def pipeline(self) -> Pipeline:
        """Raises ``MissingWeightsError`` if no checkpoint is named, ``ValueError`` for heads that it does not have."""
        if not self.weights:
            raise MissingWeightsError(
                "metrics.alignment.weights=: names no checkpoint; name the one whose attention is measured for all "
                "songs, and in metrics.alignment.heads its heads that follow the lyrics"
            )
        pipeline = Pipeline.from_pretrained(self.weights, self.device)
        layers = len(pipeline.network.decoder.layers)
        count = pipeline.network.decoder.config.stack.num_attention_heads
        for layer, heads in self.heads_by_layer.items():
            if not (0 <= layer < layers and all(0 <= head < count for head in heads)):
                raise ValueError(
                    f"metrics.alignment.heads={dict(self.heads)}: {self.weights} has {layers} layers of {count} heads; "
                    "name those of its heads that follow the lyrics"
                )
        return pipeline

    @property
    def heads_by_layer(self) -> dict[int, tuple[int, ...]]:
        """:attr:`heads` with the types that configs may change."""
        return {int(layer): tuple(heads) for layer, heads in self.heads.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the checkpoint, heads and steps."""
        heads = str(sorted(self.heads_by_layer.items()))
        return digest(pipeline_fingerprint(self.pipeline), heads, str(self.steps))

    @property
    def extractor(self) -> LyricAttention:
        return LyricAttention(metric=self, song=Song())

    def extractor_for(self, prompt: EvaluationPrompt) -> LyricAttention:
        return LyricAttention(metric=self, song=prompt.song)

    def applies(self, prompt: EvaluationPrompt) -> bool:
        return bool(lyric_words(prompt.song.lyrics))

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        return {"score": alignment_score(features["attention"], features["sung"].bool())}


@dataclass(frozen=True, kw_only=True)
class LyricAttention(FeatureExtractor):
    """Cross-attention between the lyrics of ``song`` and a recording."""

    metric: LyricAlignment
    song: Song

    @property
    def name(self) -> str:
        return f"attention-{self.metric.pipeline.checkpoint.name}"

    @property
    def fingerprint(self) -> str:
        return digest(self.metric.fingerprint, json.dumps(asdict(self.song), sort_keys=True))

    @torch.no_grad()
    def extract(self, audio: Audio) -> Features:
        """``attention`` (N, F) of lyric tokens over patches of frames, and ``sung`` (N), which of them are words."""
        pipeline = self.metric.pipeline
        network, conditioner = pipeline.network, pipeline.conditioner
        like = network.null_condition_emb
        latents = pipeline.encode(audio).mean.to(like)
        song = replace(self.song, seconds=audio.seconds)
        inputs = conditioner.encode([song], [latents.shape[1]]).to(like.device, like.dtype)
        conditions = network.condition(inputs, conditioner.silence.to(like))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(like)
        t = torch.full((1,), 1 / self.metric.steps, device=like.device)
        with record_cross_attention(network.decoder, self.metric.heads_by_layer) as weights:
            network.velocity((t * noise + (1 - t) * latents).to(like), t, conditions)
        # The lyrics come first in the sequence of condition states.
        attention = torch.cat(weights).mean(0)[:, : inputs.lyrics.shape[1]].T.float().cpu().contiguous()
        return {"attention": attention, "sung": sung_tokens(song, conditioner.text_encoder.tokenizer).to(torch.uint8)}


@contextmanager
def record_cross_attention(
    decoder: nn.Module, heads: Mapping[int, Sequence[int]]
) -> Iterator[list[Float[Tensor, "n s l"]]]:
    """Cross-attention weights of ``heads`` in every pass of ``decoder``, layer by layer; first song only."""
    weights: list[Tensor] = []
    hooks = []
    for layer, chosen in sorted(heads.items()):
        attention = decoder.get_submodule(f"layers.{layer}.cross_attn")
        queries: dict[str, Tensor] = {}

        def keep_queries(module: nn.Module, _: Any, q: Tensor, queries: dict[str, Tensor] = queries) -> None:
            queries["q"] = q

        def attend(
            module: nn.Module, _: Any, k: Tensor, queries: dict[str, Tensor] = queries, chosen: Sequence[int] = chosen
        ) -> None:
            q = queries["q"][0].transpose(0, 1)  # (N, S, D)
            keys = k[0].transpose(0, 1)
            keys = keys.repeat_interleave(len(q) // len(keys), 0)
            scores = q[list(chosen)] @ keys[list(chosen)].transpose(1, 2) / q.shape[-1] ** 0.5
            weights.append(scores.float().softmax(-1))

        hooks.append(attention.get_submodule("q_norm").register_forward_hook(keep_queries))
        hooks.append(attention.get_submodule("k_norm").register_forward_hook(attend))
    try:
        yield weights
    finally:
        for hook in hooks:
            hook.remove()


def sung_tokens(song: Song, tokenizer: Any) -> Bool[Tensor, " n"]:
    """Which tokens of the rendered lyrics hold part of a sung word: no header, no ``[tag]``, no space."""
    text = render_prompt(song).lyrics
    first = len(text) - len(END) - len(song.lyrics) if song.lyrics.strip() else len(text)
    sung = [first <= index < first + len(song.lyrics) and letter.isalnum() for index, letter in enumerate(text)]
    for tag in SECTION_TAG.finditer(song.lyrics):
        sung[first + tag.start() : first + tag.end()] = [False] * (tag.end() - tag.start())
    return torch.tensor([any(sung[start:end]) for start, end in tokenizer.encode(text).offsets], dtype=torch.bool)


def alignment_score(attention: Float[Tensor, "n f"], sung: Bool[Tensor, " n"] | None = None) -> float:
    """Coverage squared, times monotonicity squared, times confidence; 0 to 1, rounded to 4 places as upstream does.

    Args:
        attention: of each lyric token (row) at each latent frame, mean over the model's alignment heads.
        sung: the rows that are words; those of section tags are left out. ``None`` takes all.
    """
    rows = attention if sung is None else attention[sung]
    low, high = (float(rows.min()), float(rows.max())) if rows.numel() else (0.0, 0.0)
    if high <= low:
        return 0.0
    energy = (rows.double() - low) / (high - low)
    coverage = float((energy.amax(1) > ATTENDED).double().mean())
    path = warping_path(-energy.square())
    confidence = float(energy[path[:, 0], path[:, 1]].mean())
    return round(min(coverage**2 * _monotonicity(energy) ** 2 * confidence, 1.0), 4)


def warping_path(cost: Float[Tensor, "n f"]) -> Tensor:
    """The cheapest path (steps, 2) from the first row and column to the last, by steps right, down or both.

    Ties are broken to the right, then down: the diagonal is taken only where it is cheaper than both (as in Whisper's
    ``dtw_cpu``, which upstream follows).
    """
    values = cost.double().cpu().numpy()
    rows, columns = values.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((rows + 1, columns + 1), np.int8)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            both, down, right = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if both < down and both < right:
                best, step[i, j] = both, 0
            elif down < both and down < right:
                best, step[i, j] = down, 1
            else:
                best, step[i, j] = right, 2
            if i == 1 and j == 1:
                best = 0.0
            total[i, j] = values[i - 1, j - 1] + best
    i, j, path = rows, columns, []
    while i > 1 or j > 1:
        path.append((i - 1, j - 1))
        kind = 2 if i == 1 else 1 if j == 1 else step[i, j]
        i, j = i - (kind != 2), j - (kind != 1)
    return torch.tensor([*path, (0, 0)][::-1])


def _monotonicity(energy: Float[Tensor, "n f"]) -> float:
    """Share of neighbouring rows whose centre of attention moves back by at most :data:`BACKWARD_FRAMES`."""
    weight = torch.where(energy > TRACE, energy, 0.0)
    mass = weight.sum(1)
    centres = (weight @ torch.arange(weight.shape[1], dtype=weight.dtype))[mass > 0] / mass[mass > 0]
    if len(centres) < 2:
        return 1.0
    return float((centres.diff() >= -BACKWARD_FRAMES).double().mean())
