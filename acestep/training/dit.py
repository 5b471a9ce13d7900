"""The DiT's training as Lightning runs it. Holds no formula: conditions, objective and flow are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.conditioning.encode import Conditioner, tiled
from acestep.data import LatentBatch
from acestep.flow.noise import normal
from acestep.flow.objective import ConditionParts, FlowMatching
from acestep.flow.sampler import Sampler
from acestep.flow.timesteps import validation_grid
from acestep.pipeline.pipeline import Pipeline
from acestep.training.flops import StepCost
from acestep.training.module import Optimization, Trained
from acestep.training.prompt_tasks import layouts
from acestep.training.seeding import derived_generator
from acestep.training.sharding import Sharded, is_sharded, shard
from acestep.types import ConditionInputs, Conditions, Posterior, Song


class DiTModule(Trained):
    """Trains a pipeline's network on batches of latents.

    Args:
        pipeline: the parts of the model; its network is trained in place.
        objective: the loss, a function of the velocity field.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; what a song draws is a function of it and the song's place in the run alone.
        validation_times: cells of the grid over t on which the validation loss is taken.
        conditioner: what training conditions on, where it is not as the pipeline generates; validation is as it does.
    """

    has_noise_levels = True
    makes_songs = True

    def __init__(
        self,
        pipeline: Pipeline,
        objective: FlowMatching,
        optimization: Optimization,
        seed: int,
        validation_times: int = 8,
        conditioner: Conditioner | None = None,
    ) -> None:
        super().__init__(pipeline.network, optimization, seed)
        self.pipeline = pipeline
        self.objective = objective
        self.conditioner = conditioner or pipeline.conditioner
        self.times = validation_grid(validation_times)
        self.cost = StepCost(self.network)

    def configure_model(self) -> None:
        """Under FSDP2, spread the parameters over the processes; a second call finds it done."""
        if isinstance(self.trainer.strategy, Sharded) and not is_sharded(self.network):
            shard(self.network, self.trainer.strategy.device_mesh["data_parallel"])

    def training_step(self, batch: LatentBatch, index: int) -> dict[str, Any]:
        """One batch's share of its step's loss; per song beside it, for whoever watches."""
        positions = self.positions(index, len(batch))
        inputs, conditions = self.conditions(batch, self.conditioner)
        loss = self.objective(
            self.network.velocity,
            latents(batch, self.generators("posterior", positions)),
            conditions,
            self.network.null(conditions),
            self.generators("training", positions),
            positions,
            self._parts(inputs, conditions),
        )
        dropped = {name: songs.detach() for name, songs in loss.dropped.items()}
        return {
            "loss": self.gradients.share(loss),
            "per_song": loss.per_song,
            "t": loss.t,
            "dropped": dropped,
            "flops": torch.tensor(self.cost(batch.mean.shape[:2], conditions.states.shape[1]), device=self.device),
        }

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """Losses of held-out songs at fixed times and with fixed noise, without condition dropout."""
        (_, conditions), clean = self.conditions(batch, self.pipeline.conditioner), batch.mean.float()
        noise = normal(clean.shape, [derived_generator(self.seed, "validation", song) for song in batch.indices])
        for t in self.times:
            loss = self.objective.evaluate_at(
                self.network.velocity, clean, conditions, t.expand(len(batch)).to(clean), noise.to(clean)
            ).per_song.mean()
            self.note(f"loss_t{t:.3f}", loss, len(batch))
            self.note("loss", loss, len(batch))

    def play(self, songs: Sequence[Song], sampler: Sampler | None) -> Iterator[Audio]:
        """As the pipeline makes any other song; under FSDP2, all ranks make them together."""
        lengths = self.pipeline.lengths
        wanted = [replace(song, seconds=lengths.nearest(song.seconds)) for song in songs]
        return self.pipeline.generate(wanted, sampler, batch_size=len(wanted))

    def conditions(self, batch: LatentBatch, conditioner: Conditioner) -> tuple[ConditionInputs, Conditions]:
        """What the DiT reads beside the latents, and what from; with gradients only if the condition encoder trains."""
        starts = layouts(batch, conditioner.silence)
        inputs = conditioner.encode(batch.songs, batch.frames, starts).to(self.device)
        trains = any(parameter.requires_grad for parameter in self.network.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return inputs, self.network.condition(inputs, conditioner.silence.to(self.device))

    def _parts(self, inputs: ConditionInputs, conditions: Conditions) -> ConditionParts | None:
        """Where conditions' parts are, if any of them is dropped by itself."""
        if not self.objective.dropout.parts:
            return None
        return condition_parts(inputs, conditions, self.pipeline.conditioner.silence)

    def setup(self, stage: str) -> None:
        """The frozen text encoder is no part of the module's state, and so is moved by hand."""
        self.pipeline.conditioner.text_encoder.to(self.device)


def latents(batch: LatentBatch, generators: Sequence[torch.Generator]) -> Float[Tensor, "b t c"]:
    """A draw of each song's latents from what the autoencoder believes, float32."""
    noise = normal(batch.mean.shape, generators).to(batch.mean.device)
    return Posterior(batch.mean.float(), batch.scale.float()).sample(noise)


def condition_parts(
    inputs: ConditionInputs, conditions: Conditions, silence: Float[Tensor, "1 ts c"]
) -> ConditionParts:
    """Where ``conditions``, made of ``inputs``, hold lyrics, timbre and text: in this order, without gaps."""
    songs, frames = inputs.frame_mask.shape
    references = torch.bincount(inputs.reference_index, minlength=songs)
    lengths = {"lyrics": inputs.lyrics_mask.sum(1), "timbre": references, "text": inputs.text_mask.sum(1)}
    at = torch.arange(conditions.states.shape[1], device=conditions.states.device)
    rows, first = {}, torch.zeros_like(references)
    for name, length in lengths.items():
        rows[name] = (at >= first[:, None]) & (at < (first + length)[:, None])
        first = first + length
    quiet = tiled(silence, frames).to(conditions.context).expand(songs, -1, -1)
    return ConditionParts(rows, torch.cat([quiet, torch.ones_like(quiet)], dim=-1))
