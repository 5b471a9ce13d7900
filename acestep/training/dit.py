"""The DiT's training as Lightning runs it. Holds no formula: conditions, objective and flow are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from acestep.data import LatentBatch
from acestep.flow.noise import normal
from acestep.flow.objective import FlowMatching
from acestep.flow.timesteps import validation_grid
from acestep.pipeline import Pipeline
from acestep.training.randomness import derived_generator, derived_seed
from acestep.types import Conditions, Posterior


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How parameters move: an optimiser of parameters, and the learning rate's share at a step of all steps."""

    optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    lr: Callable[[int, int], float]


class DiTModule(LightningModule):
    """Trains a pipeline's network on batches of latents.

    Only trained parameters are saved in checkpoints and strictly restored; the frozen rest is in ``weights`` already.

    Args:
        pipeline: the parts of the model; its network is trained in place.
        objective: the loss, a function of the velocity field.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; what a step draws is a function of it, the step and the rank.
        validation_times: cells of the grid over t on which the validation loss is taken.
    """

    strict_loading = False

    def __init__(
        self,
        pipeline: Pipeline,
        objective: FlowMatching,
        optimization: Optimization,
        seed: int,
        validation_times: int = 8,
    ) -> None:
        super().__init__()
        self.network = pipeline.network.train()
        self.pipeline = pipeline
        self.objective = objective
        self.optimization = optimization
        self.seed = seed
        self.times = validation_grid(validation_times)
        self.gradient_norm = torch.tensor(0.0)

    def training_step(self, batch: LatentBatch, index: int) -> dict[str, Tensor]:
        """One batch's loss; per song beside it, for whoever watches."""
        conditions, generators = self.conditions(batch), self.generators(index, len(batch))
        loss = self.objective(
            self.network.velocity, latents(batch, generators), conditions, self.network.null(conditions), generators
        )
        return {"loss": loss.mean, "per_song": loss.per_song.detach(), "t": loss.t}

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """Losses of held-out songs at fixed times and with fixed noise, without condition dropout."""
        conditions, clean = self.conditions(batch), batch.mean.float()
        noise = normal(clean.shape, [derived_generator(self.seed, "validation", song) for song in batch.indices])
        for t in self.times:
            loss = self.objective.evaluate_at(
                self.network.velocity, clean, conditions, t.expand(len(batch)).to(clean), noise.to(clean)
            ).per_song.mean()
            self.log(f"val/loss_t{t:.3f}", loss, batch_size=len(batch), sync_dist=True)
            self.log("val/loss", loss, batch_size=len(batch), sync_dist=True, prog_bar=True)
        self.log("step", float(self.trainer.global_step), batch_size=len(batch), sync_dist=True)

    def conditions(self, batch: LatentBatch) -> Conditions:
        """What the DiT reads beside the latents; with gradients only if the condition encoder trains."""
        conditioner = self.pipeline.conditioner
        inputs = conditioner.encode(batch.songs, batch.frames).to(self.device)
        trains = any(parameter.requires_grad for parameter in self.network.encoder.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return self.network.condition(inputs, conditioner.silence.to(self.device))

    def generators(self, index: int, songs: int) -> list[torch.Generator]:
        """One generator for each song of batch ``index``, by its position in the run over all ranks."""
        first = (index * self.trainer.world_size + self.global_rank) * songs
        return [derived_generator(self.seed, "training", position) for position in range(first, first + songs)]

    def on_train_batch_start(self, batch: LatentBatch, index: int) -> None:
        """What modules draw by themselves (an adapter's dropout) also depends on nothing but the position."""
        torch.manual_seed(derived_seed(self.seed, "modules", index, self.global_rank))

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser of what trains, and its schedule, stepped with it."""
        optimizer = self.optimization.optimizer([p for p in self.network.parameters() if p.requires_grad])
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimization.lr(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm, and keep the norm from before."""
        trained = [p for p in self.network.parameters() if p.grad is not None]
        self.gradient_norm = nn.utils.clip_grad_norm_(trained, gradient_clip_val or float("inf"))

    def setup(self, stage: str) -> None:
        """The frozen text encoder is no part of the module's state, and so is moved by hand."""
        self.pipeline.conditioner.text_encoder.to(self.device)

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by their names in checkpoints."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in self.trained()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that would leave a trained parameter as it is, or holds one that has no place."""
        odd = sorted(self.trained().keys() ^ checkpoint["state_dict"].keys())
        if odd:
            raise ValueError(
                f"run.dir: its checkpoint trains other parameters than this config ({odd[0]} and {len(odd) - 1} more); "
                "start in a new run.dir"
            )


def latents(batch: LatentBatch, generators: Sequence[torch.Generator]) -> Float[Tensor, "b t c"]:
    """A draw of each song's latents from what the autoencoder believes, float32."""
    noise = normal(batch.mean.shape, generators).to(batch.mean.device)
    return Posterior(batch.mean.float(), batch.scale.float()).sample(noise)


def freeze(network: nn.Module, trainable: str) -> None:
    """Leave trainable exactly the parameters whose names the regular expression ``trainable`` finds."""
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise ValueError(f"trainable={trainable}: not a regular expression ({error})") from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(pattern.search(name) is not None)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"trainable={trainable}: finds no parameter; names look like {next(iter(network.state_dict()))}"
        )
