"""How well a song walks through its lyrics, by what a model's cross-attention looks at as it hears the song.

One pass of the decoder without guidance over the song's latents with a little noise (upstream
``core/generation/handler/lyric_score.py``); heads are averaged, and :mod:`.alignment` scores the walk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acestep.audio.audio import Audio
from acestep.conditioning.prompt import END, render
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.files import digest
from acestep.evaluation.metrics.alignment import alignment_score
from acestep.evaluation.metrics.base import Unprompted
from acestep.evaluation.metrics.edit_distance import TAG, words
from acestep.evaluation.prompts import Prompt
from acestep.evaluation.samples import fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.types import Song

HEADS_2B = {2: (6,), 3: (10, 11), 4: (3,), 5: (8, 9), 6: (8,)}
"""Heads of the 2B checkpoints that follow the lyrics (upstream's default). For XL they are other ones, unpublished."""
NOISE_SEED = 42


@dataclass(frozen=True, kw_only=True)
class LyricAlignment:
    """Upstream's lyric alignment score. Compare it at equal lyrics and duration only.

    Attributes:
        weights: checkpoint whose attention judges: one for all songs, whoever made them.
        heads: heads that follow the lyrics, by layer.
        steps: the noise is that of the last of so many steps.
        device: where it runs.
    """

    weights: str = ""
    heads: Mapping[int, Sequence[int]] = field(default_factory=lambda: HEADS_2B)
    steps: int = 50
    device: str = "cpu"

    def load(self) -> AlignmentScorer:
        """The scorer. Raises ``MissingWeightsError`` where no checkpoint is named, ``ValueError`` for unknown heads."""
        if not self.weights:
            raise MissingWeightsError(
                "metrics.alignment.weights=: names no checkpoint; name the one whose attention is to judge all songs, "
                "and in metrics.alignment.heads its heads that follow the lyrics"
            )
        pipeline = Pipeline.from_pretrained(self.weights, self.device)
        layers = pipeline.network.decoder.layers
        count = pipeline.network.decoder.config.stack.num_attention_heads
        for layer, heads in self.heads.items():
            if not (0 <= int(layer) < len(layers) and all(0 <= head < count for head in heads)):
                raise ValueError(
                    f"alignment.heads={dict(self.heads)}: {self.weights} has {len(layers)} layers of {count} heads; "
                    "name those of its heads that follow the lyrics"
                )
        return AlignmentScorer(Judge(pipeline, {int(n): tuple(heads) for n, heads in self.heads.items()}, self.steps))


@dataclass(frozen=True)
class Judge:
    """A checkpoint, and where and when to look at its attention."""

    pipeline: Pipeline
    heads: Mapping[int, Sequence[int]]
    steps: int

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides what is seen, beside the song."""
        return digest(fingerprint(self.pipeline), str(sorted(self.heads.items())), str(self.steps))


class AlignmentEar:
    """What a model attends to in ``song``'s lyrics as it hears a recording."""

    def __init__(self, judge: Judge, song: Song) -> None:
        self.name = f"attention-{judge.pipeline.checkpoint.name}"
        self.fingerprint = digest(judge.fingerprint, json.dumps(asdict(song), sort_keys=True))
        self._judge, self._song = judge, song

    @torch.no_grad()
    def hear(self, audio: Audio) -> Heard:
        """``attention`` (N, F) of lyric tokens over patches of frames, and ``sung`` (N), which of them are words."""
        pipeline = self._judge.pipeline
        network, conditioner = pipeline.network, pipeline.conditioner
        like = network.null_condition_emb
        latents = pipeline.encode(audio).mean.to(like)
        song = replace(self._song, seconds=audio.seconds)
        inputs = conditioner.encode([song], [latents.shape[1]]).to(like.device, like.dtype)
        conditions = network.condition(inputs, conditioner.silence.to(like))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(NOISE_SEED)).to(like)
        t = torch.full((1,), 1 / self._judge.steps, device=like.device)
        with watched(network.decoder, self._judge.heads) as seen:
            network.velocity((t * noise + (1 - t) * latents).to(like), t, conditions)
        # The lyrics are the first of the states that are attended to.
        attention = torch.cat(seen).mean(0)[:, : inputs.lyrics.shape[1]].T.float().cpu().contiguous()
        return {"attention": attention, "sung": sung_tokens(song, conditioner.text_encoder.tokenizer).to(torch.uint8)}


class AlignmentScorer(Unprompted):
    """What :class:`LyricAlignment` configures."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.ear = AlignmentEar(judge, Song())

    def ear_for(self, prompt: Prompt) -> AlignmentEar:
        """The ear that knows the prompt's words."""
        return AlignmentEar(self._judge, prompt.song)

    def applies(self, prompt: Prompt) -> bool:
        """Whether there is something to sing."""
        return bool(words(prompt.song.lyrics))

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """``score``."""
        return {"score": alignment_score(heard["attention"], heard["sung"].bool())}


@contextmanager
def watched(decoder: nn.Module, heads: Mapping[int, Sequence[int]]) -> Iterator[list[Float[Tensor, "n s l"]]]:
    """The cross-attention of ``heads`` in every pass of ``decoder`` meanwhile, layer by layer; first song only."""
    seen: list[Tensor] = []
    hooks = []
    for layer, chosen in sorted(heads.items()):
        attention = decoder.get_submodule(f"layers.{layer}.cross_attn")
        queries: dict[str, Tensor] = {}

        def keep(module: nn.Module, _: Any, q: Tensor, queries: dict[str, Tensor] = queries) -> None:
            queries["q"] = q

        def attend(
            module: nn.Module, _: Any, k: Tensor, queries: dict[str, Tensor] = queries, chosen: Sequence[int] = chosen
        ) -> None:
            q = queries["q"][0].transpose(0, 1)  # (N, S, D)
            keys = k[0].transpose(0, 1)
            keys = keys.repeat_interleave(len(q) // len(keys), 0)
            scores = q[list(chosen)] @ keys[list(chosen)].transpose(1, 2) / q.shape[-1] ** 0.5
            seen.append(scores.float().softmax(-1))

        hooks.append(attention.get_submodule("q_norm").register_forward_hook(keep))
        hooks.append(attention.get_submodule("k_norm").register_forward_hook(attend))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def sung_tokens(song: Song, tokenizer: Any) -> Bool[Tensor, " n"]:
    """Which tokens of the rendered lyrics hold a part of a word that is sung: no header, no ``[tag]``, no space."""
    text = render(song).lyrics
    first = len(text) - len(END) - len(song.lyrics) if song.lyrics.strip() else len(text)
    sung = [first <= place < first + len(song.lyrics) and letter.isalnum() for place, letter in enumerate(text)]
    for tag in TAG.finditer(song.lyrics):
        sung[first + tag.start() : first + tag.end()] = [False] * (tag.end() - tag.start())
    return torch.tensor([any(sung[start:end]) for start, end in tokenizer.encode(text).offsets], dtype=torch.bool)
