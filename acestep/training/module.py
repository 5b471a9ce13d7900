"""What every training has in common: optimisation, positions in the run, and checkpoints of what trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from acestep.audio.audio import Audio
from acestep.flow.sampler import Sampler
from acestep.training.gradients import Gradients
from acestep.training.seeding import derived_generator, derived_seed
from acestep.training.sharding import Sharded
from acestep.types import Song


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How parameters move: an optimiser of named parameters, and the learning rate's share at a step of all steps."""

    optimizer: Callable[[Sequence[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
    lr: Callable[[int, int], float]


@dataclass(frozen=True)
class PartLoss:
    """A batch's loss as sums and counts, which add up over ranks and accumulated batches.

    ``parts`` are the same by name, detached, for whoever watches.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    parts: Mapping[str, tuple[Tensor, Tensor]]


class Trained(LightningModule):
    """Trains ``network``. A subclass says what a step's loss is.

    Only trained parameters are saved in checkpoints and strictly restored; the frozen rest is in ``weights`` already.

    Args:
        network: trained in place.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; what an example draws is a function of it and the example's place in the run alone.
    """

    strict_loading = False
    has_noise_levels = False
    """Whether its loss is of noise levels, rather than of parts."""
    makes_songs = False
    """Whether its network takes part in making songs, which ``play`` then does."""

    def __init__(self, network: nn.Module, optimization: Optimization, seed: int) -> None:
        super().__init__()
        self.network = network.train()
        self.optimization = optimization
        self.seed = seed
        self.gradients = Gradients()

    def configure_model(self) -> None:
        """Refuse a strategy that spreads parameters; a subclass whose network can be spread does so here."""
        if isinstance(self.trainer.strategy, Sharded):
            raise ValueError("trainer.strategy=fsdp2: this task does not spread its parameters; use ddp")

    def play(self, songs: Sequence[Song], sampler: Sampler | None) -> Iterator[Audio]:
        """Held-out ``songs`` as the model makes them now, each as long as it can be; the first rank's count."""
        raise NotImplementedError

    def of_all_ranks(self, sums: Tensor) -> Tensor:
        """The sums of all processes together, on the CPU; ``sums`` stay as they are."""
        return self.trainer.strategy.reduce(sums.to(self.device, copy=True), reduce_op="sum").cpu()

    def step_of(self, loss: PartLoss, examples: int) -> dict[str, Any]:
        """What ``training_step`` returns for a loss in parts."""
        parts = {"loss": (loss.total.detach(), loss.count.detach())}
        parts |= {f"loss_{name}": (total.detach(), count.detach()) for name, (total, count) in loss.parts.items()}
        return {"loss": self.gradients.share(loss), "parts": parts, "examples": examples}

    def log_parts(self, loss: PartLoss) -> None:
        """Validation losses by part, each weighted by what it counts, and ``val/loss``."""
        parts = {"loss": (loss.total, loss.count)} | {f"loss_{name}": part for name, part in loss.parts.items()}
        for name, (total, count) in parts.items():
            if count:
                self.note(name, total / count, int(count))

    def note(self, name: str, value: Tensor | float, weight: int = 1) -> None:
        """A value of this validation batch, ``val/NAME``: averaged over batches and ranks, each by its ``weight``."""
        self.log(f"val/{name}", value, batch_size=weight, sync_dist=True, prog_bar=name == "loss", logger=False)

    def on_validation_end(self) -> None:
        """Hand the validation's values to the loggers at the step they are of; Lightning would name the one before."""
        noted = {name: float(value) for name, value in self.trainer.callback_metrics.items() if name.startswith("val/")}
        for logger in self.trainer.loggers:
            logger.log_metrics(noted, step=self.trainer.global_step)

    def positions(self, index: int, songs: int) -> range:
        """The places in the run, over all ranks, of the songs of this rank's batch ``index``.

        Packed batches differ in size: each has as many places as the largest.
        """
        first = (index * self.trainer.world_size + self.global_rank) * self.trainer.datamodule.batch_size
        return range(first, first + songs)

    def generators(self, purpose: str, positions: Sequence[int]) -> list[torch.Generator]:
        """One generator for each place in the run, so that no draw depends on batch size or number of ranks."""
        return [derived_generator(self.seed, purpose, position) for position in positions]

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """What modules draw by themselves (an adapter's dropout) also depends on nothing but the position."""
        torch.manual_seed(derived_seed(self.seed, "modules", index, self.global_rank))

    def configure_optimizers(self) -> Any:
        """The optimiser of what trains, and its schedule, stepped with it."""
        optimizer = self.optimization.optimizer(
            [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        )
        # Fused optimisers would unscale fp16 gradients themselves, after they were measured and clipped.
        optimizer._step_supports_amp_scaling = False
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimization.lr(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Give the gradients their scale, measure and clip them, and drop what is not finite."""
        self.gradients.finish(self.network.parameters(), self.trainer, gradient_clip_val)

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by their names in checkpoints."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains."""
        trained = self.trained()
        checkpoint["state_dict"] = {n: value for n, value in checkpoint["state_dict"].items() if n in trained}
        checkpoint["trained"] = sorted(trained)
        checkpoint["skipped"] = self.gradients.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that would leave a trained parameter as it is, or holds one that has no place."""
        held = checkpoint["trained"] if "trained" in checkpoint else checkpoint["state_dict"]
        odd = sorted(self.trained().keys() ^ set(held))
        if odd:
            raise ValueError(
                f"run.dir: its checkpoint trains other parameters than this config ({odd[0]} and {len(odd) - 1} more); "
                "start in a new run.dir"
            )
        self.gradients.skipped = checkpoint.get("skipped", 0)


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
