"""One batch of prepared songs to latents: conditions, noise, task and sampler brought together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acestep.adapters.bank import Bank
from acestep.conditioning.encode import Conditioner
from acestep.conditioning.masks import Layout
from acestep.flow.flow_edit import FlowEdit
from acestep.flow.noise import SongNoise, song_generators
from acestep.flow.sampler import OnStep, Sampler
from acestep.flow.solvers import Euler
from acestep.memory import Placement
from acestep.models.acestep import AceStep
from acestep.pipeline.prepare import Prepared, retaken, sampler_task, sources
from acestep.types import Conditions, Request, Song


@dataclass(frozen=True)
class BatchSampler:
    """The parts that sampling needs, and where they work."""

    network: AceStep
    conditioner: Conditioner
    bank: Bank
    placement: Placement
    device: torch.device
    compiled: bool = False

    @torch.no_grad()
    def __call__(
        self, batch: Sequence[Prepared], sampler: Sampler, on_step: OnStep | None = None
    ) -> list[Float[Tensor, "t c"]]:
        """Latents of songs that the sampler treats alike (``requests.batches``), each at its own length."""
        frames, songs = [item.frames for item in batch], [item.song for item in batch]
        channels = self.conditioner.silence.shape[-1]
        fresh = SongNoise(song_generators([song.seed for song in songs]), frames, channels, self.device)
        layouts = [item.layout for item in batch]
        plain = [item.plain for item in batch if item.plain is not None]
        network, request = self.network, songs[0] if isinstance(songs[0], Request) else Request()
        with evaluating(network):
            with self.placement(self.conditioner.text_encoder, network.encoder, network.tokenizer, network.detokenizer):
                conditions = self._conditions(songs, frames, layouts)
                if request.task == "edit":
                    plain, songs = layouts, [_of_source(song) for song in songs]
                others = self._conditions(songs, frames, plain) if plain else None
            null, other_null = network.null(conditions), network.null(others) if others else None
            with self.placement(network.decoder), self.bank.using(request.adapters or ()):
                field = network.generation(self.compiled)
                if others and request.task == "edit":
                    edit, source = _edit(request, sampler), sources(batch, self.device)
                    nulls = other_null, null
                    made = edit(field, source, others, conditions, fresh, *nulls, on_step=on_step)
                else:
                    task = sampler_task(batch, max(frames), others, other_null, self.device)
                    noise = retaken(fresh(), batch)
                    made = sampler(field, noise, conditions, null, task=task, draw=fresh, on_step=on_step)
        return [latents[:length] for latents, length in zip(made, frames, strict=True)]

    def _conditions(self, songs: Sequence[Song], frames: Sequence[int], layouts: Sequence[Layout]) -> Conditions:
        weight = self.network.null_condition_emb
        inputs = self.conditioner.encode(songs, frames, layouts).to(self.device, weight.dtype)
        return self.network.condition(inputs, self.conditioner.silence.to(self.device, weight.dtype))


def _edit(song: Request, sampler: Sampler) -> FlowEdit:
    """The flow edit with the parts of ``sampler`` that it has too."""
    if sampler.solver != Euler():
        raise ValueError(f"solver={sampler.solver}: task edit takes Euler steps only; say solver=euler")
    return FlowEdit(
        schedule=sampler.schedule,
        guidance=sampler.guidance,
        clamp=sampler.clamp,
        smoothing=sampler.smoothing,
        n_min=song.edit_start,
        n_max=song.edit_stop,
        draws=song.edit_draws,
    )


def _of_source(song: Song) -> Song:
    """The words of an edit's source: same metadata, its own caption and lyrics."""
    assert isinstance(song, Request)
    return replace(song, caption=song.source_caption, lyrics=song.source_lyrics)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode, then as it was: songs are also made in the midst of training."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
