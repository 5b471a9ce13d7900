"""Training of the DiT as a LightningModule; objective, conditions and flow are defined elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.conditioning.encode import Conditioner, tile_silence
from acestep.conditioning.masks import TaskContext, task_context
from acestep.conditioning.prompt import task_instruction
from acestep.data import LatentBatch, SampledTask
from acestep.flow.noise import normal
from acestep.flow.objective import ConditionParts, FlowMatching
from acestep.flow.sampler import Sampler
from acestep.flow.timesteps import validation_grid
from acestep.models.acestep import AceStep
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.training.checkpoint import FSDP2Strategy
from acestep.training.flops import StepFlops
from acestep.training.module import Optimization, TrainingModule, derived_generator
from acestep.training.sharding import is_sharded, shard_dit
from acestep.types import ConditionInputs, Conditions, Posterior


class DiTModule(TrainingModule):
    """Trains a pipeline's network on batches of latents.

    Args:
        pipeline: the parts of the model; its network is trained in place.
        objective: the loss, a function of the velocity field.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; the random draws of a song are a function of it and the song's index in the run.
        validation_times: number of equidistant values of t at which the validation loss is computed.
        conditioner: of training, if not the pipeline's, which validation and generation use.
    """

    network: AceStep
    has_noise_levels = True
    can_sample = True

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
        self.flops = StepFlops(self.network)

    def configure_model(self) -> None:
        """Shard the parameters under FSDP2; Lightning calls it again for each validation and fit."""
        if isinstance(self.trainer.strategy, FSDP2Strategy) and not is_sharded(self.network):
            shard_dit(self.network, self.trainer.strategy.device_mesh["data_parallel"])

    def training_step(self, batch: LatentBatch, index: int) -> dict[str, Any]:
        """The loss to backpropagate, and for callbacks: losses and times per song, dropped conditions, FLOPs."""
        positions = self.positions(index, len(batch))
        inputs, conditions = self.conditions(batch, self.conditioner)
        silence = self.pipeline.conditioner.silence
        parts = condition_parts(inputs, conditions, silence) if self.objective.dropout.parts else None
        loss = self.objective(
            self.network.velocity,
            sample_latents(batch, self.generators("posterior", positions)),
            conditions,
            self.network.null(conditions),
            self.generators("training", positions),
            positions,
            parts,
        )
        return {
            "loss": self.gradients.backward_loss(loss.total, loss.count),
            "per_song": loss.per_song,
            "t": loss.t,
            "dropped": {name: songs.detach() for name, songs in loss.dropped.items()},
            "flops": torch.tensor(self.flops(batch.mean.shape[:2], conditions.states.shape[1]), device=self.device),
        }

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """Losses of held-out songs at fixed times, with fixed noise and without condition dropout."""
        (_, conditions), clean = self.conditions(batch, self.pipeline.conditioner), batch.mean.float()
        noise = normal(clean.shape, [derived_generator(self.seed, "validation", song) for song in batch.indices])
        for t in self.times:
            loss = self.objective.evaluate_at(
                self.network.velocity, clean, conditions, t.expand(len(batch)).to(clean), noise.to(clean)
            ).per_song.mean()
            self.log_val(f"loss_t{t:.3f}", loss, len(batch))
            self.log_val("loss", loss, len(batch))

    def sample(self, songs: Sequence[Song], sampler: Sampler | None) -> Iterator[Audio]:
        """Audio by ``Pipeline.generate``; under FSDP2, all ranks take part."""
        lengths = self.pipeline.lengths
        requests = [replace(song, seconds=lengths.nearest(song.seconds or lengths.default_seconds)) for song in songs]
        return self.pipeline.generate(requests, sampler, batch_size=len(requests))

    def conditions(self, batch: LatentBatch, conditioner: Conditioner) -> tuple[ConditionInputs, Conditions]:
        """Inputs and outputs of the condition encoder; with gradients only if it trains."""
        contexts = task_contexts(batch, conditioner.silence)
        inputs = conditioner.encode(batch.songs, batch.frames, contexts).to(self.device)
        trains = any(parameter.requires_grad for parameter in self.network.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return inputs, self.network.condition(inputs, conditioner.silence.to(self.device))

    def setup(self, stage: str) -> None:
        """Move the frozen text encoder, which is no submodule, to the device."""
        self.pipeline.conditioner.text_encoder.to(self.device)


def task_contexts(batch: LatentBatch, silence: Float[Tensor, "1 ts c"]) -> list[TaskContext] | None:
    """Contexts of the tasks that were drawn for the songs of ``batch``; ``None`` if all are text-to-music.

    The source latents of a task are the means of the song itself.
    """
    if all(task == SampledTask() for task in batch.tasks):
        return None
    contexts = []
    for row, (drawn, frames) in enumerate(zip(batch.tasks, batch.frames, strict=True)):
        source = None if drawn == SampledTask() else batch.mean[row, :frames].to(silence)
        context = task_context(drawn.task, source, silence, frames, drawn.span)
        contexts.append(replace(context, instruction=task_instruction(drawn.task)))
    return contexts


def sample_latents(batch: LatentBatch, generators: Sequence[torch.Generator]) -> Float[Tensor, "b t c"]:
    """Latents sampled from each song's Gaussian posterior, float32."""
    noise = normal(batch.mean.shape, generators).to(batch.mean.device)
    return Posterior(batch.mean.float(), batch.scale.float()).sample(noise)


def condition_parts(
    inputs: ConditionInputs, conditions: Conditions, silence: Float[Tensor, "1 ts c"]
) -> ConditionParts:
    """Tokens of lyrics, timbre and text in ``conditions``, which holds them in this order without gaps."""
    songs, frames = inputs.frame_mask.shape
    references = torch.bincount(inputs.reference_index, minlength=songs)
    lengths = {"lyrics": inputs.lyrics_mask.sum(1), "timbre": references, "text": inputs.text_mask.sum(1)}
    at = torch.arange(conditions.states.shape[1], device=conditions.states.device)
    masks, first = {}, torch.zeros_like(references)
    for name, length in lengths.items():
        masks[name] = (at >= first[:, None]) & (at < (first + length)[:, None])
        first = first + length
    quiet = tile_silence(silence, frames).to(conditions.context).expand(songs, -1, -1)
    return ConditionParts(masks, torch.cat([quiet, torch.ones_like(quiet)], dim=-1))
