"""Sampling of latents for one batch of prepared songs: conditions, noise, task and sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acestep.adapters.adapter_set import AdapterSet
from acestep.conditioning.encode import Conditioner
from acestep.conditioning.masks import TaskContext
from acestep.flow.flow_edit import FlowEdit
from acestep.flow.noise import SongNoise, song_generators
from acestep.flow.sampler import OnStep, Sampler
from acestep.flow.solvers import Euler
from acestep.memory import Placement
from acestep.models.acestep import AceStep
from acestep.pipeline.prepare import PreparedSong, add_retakes, sampler_task, source_latents
from acestep.songs import Request, Song
from acestep.types import Conditions


@dataclass(frozen=True)
class LatentSampler:
    """Samples the latents of a batch. ``device`` is that of the DiT; see ``Pipeline`` for the other fields."""

    network: AceStep
    conditioner: Conditioner
    adapter_set: AdapterSet
    placement: Placement
    device: torch.device
    compiled: bool = False

    @torch.no_grad()
    def __call__(
        self, batch: Sequence[PreparedSong], sampler: Sampler, on_step: OnStep | None = None
    ) -> list[Float[Tensor, "t c"]]:
        """Latents of songs with the same sampler parameters (``batch_songs``), each at its own length."""
        frames, songs = [item.frames for item in batch], [item.song for item in batch]
        channels = self.conditioner.silence.shape[-1]
        noise = SongNoise(song_generators([song.seed for song in songs]), frames, channels, self.device)
        contexts = [item.context for item in batch]
        plain = [item.plain_context for item in batch if item.plain_context is not None]
        network, request = self.network, songs[0] if isinstance(songs[0], Request) else Request()
        with eval_mode(network):
            with self.placement(self.conditioner.text_encoder, network.encoder, network.tokenizer, network.detokenizer):
                conditions = self._conditions(songs, frames, contexts)
                if request.task == "edit":
                    plain, songs = contexts, [_source_prompt(song) for song in songs]
                others = self._conditions(songs, frames, plain) if plain else None
            null, other_null = network.null(conditions), network.null(others) if others else None
            with self.placement(network.decoder), self.adapter_set.using(request.adapters or ()):
                field = network.cached_velocity(self.compiled)
                if others and request.task == "edit":
                    edit, source = _flow_edit(request, sampler), source_latents(batch, self.device)
                    nulls = other_null, null
                    latents = edit(field, source, others, conditions, noise, *nulls, on_step=on_step)
                else:
                    task = sampler_task(batch, max(frames), others, other_null, self.device)
                    initial = add_retakes(noise(), batch)
                    latents = sampler(field, initial, conditions, null, task=task, draw=noise, on_step=on_step)
        return [song_latents[:length] for song_latents, length in zip(latents, frames, strict=True)]

    def _conditions(self, songs: Sequence[Song], frames: Sequence[int], contexts: Sequence[TaskContext]) -> Conditions:
        weight = self.network.null_condition_emb
        inputs = self.conditioner.encode(songs, frames, contexts).to(self.device, weight.dtype)
        return self.network.condition(inputs, self.conditioner.silence.to(self.device, weight.dtype))


def _flow_edit(song: Request, sampler: Sampler) -> FlowEdit:
    """FlowEdit with the parts of ``sampler`` that it shares."""
    if sampler.solver != Euler():
        raise ValueError(f"solver={sampler.solver}: task edit supports Euler steps only; use solver=euler")
    return FlowEdit(
        schedule=sampler.schedule,
        guidance=sampler.guidance,
        clamp=sampler.clamp,
        smoothing=sampler.smoothing,
        n_min=song.edit_start,
        n_max=song.edit_stop,
        draws=song.edit_draws,
    )


def _source_prompt(song: Song) -> Song:
    """``song`` with the caption and lyrics of its source."""
    assert isinstance(song, Request)
    return replace(song, caption=song.source_caption, lyrics=song.source_lyrics)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode inside, then in its former mode."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
