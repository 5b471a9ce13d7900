"""Base LightningModule of all tasks: optimisation, per-example random generators, checkpoints of trained parameters."""

from __future__ import annotations

import hashlib
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
from acestep.songs import Song
from acestep.training.checkpoint import FSDP2Strategy
from acestep.training.gradients import Gradients
from acestep.training.optim import OptimizerConfig


def derived_seed(*counters: int | str) -> int:
    """A seed that is a function of ``counters`` alone, so that draws do not depend on what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, counters)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derived_generator(*counters: int | str) -> torch.Generator:
    """A CPU generator seeded by ``derived_seed``: the same draws on every device."""
    return torch.Generator().manual_seed(derived_seed(*counters))


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The optimiser, and the factor on its learning rate as a function of the step and the number of all steps."""

    optimizer: OptimizerConfig
    lr: Callable[[int, int], float]


@dataclass(frozen=True)
class SummedLoss:
    """A batch's loss as sum and count, which add up over ranks and accumulated batches; ``parts`` likewise by name."""

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    parts: Mapping[str, tuple[Tensor, Tensor]]


class TrainingModule(LightningModule):
    """Trains ``network``; a subclass defines the loss of a step.

    Checkpoints hold the trained parameters only, and restore them strictly; frozen ones come from ``weights``.

    Args:
        network: trained in place.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; the random draws of an example are a function of it and the example's index in the run.
    """

    strict_loading = False
    has_noise_levels = False
    """Whether ``training_step`` returns losses per song and time ``t``; otherwise it returns losses by part."""
    can_sample = False
    """Whether ``sample`` is implemented."""

    def __init__(self, network: nn.Module, optimization: Optimization, seed: int) -> None:
        super().__init__()
        self.network = network.train()
        self.optimization = optimization
        self.seed = seed
        self.gradients = Gradients()

    def configure_model(self) -> None:
        """Refuse FSDP2; a subclass that supports it shards its network here."""
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            raise ValueError("trainer.strategy=fsdp2: this task does not shard its parameters; use ddp")

    def sample(self, songs: Sequence[Song], sampler: Sampler | None) -> Iterator[Audio]:
        """Audio of held-out ``songs`` from the present weights, in lengths that the model supports.

        All ranks call it; the audio of the first rank is used.
        """
        raise NotImplementedError

    def sum_over_ranks(self, sums: Tensor) -> Tensor:
        """The sum of ``sums`` over all processes, on the CPU; ``sums`` is not changed."""
        return self.trainer.strategy.reduce(sums.to(self.device, copy=True), reduce_op="sum").cpu()

    def training_output(self, loss: SummedLoss, examples: int) -> dict[str, Any]:
        """The return value of ``training_step`` for a loss in parts."""
        parts = {name: (total.detach(), count.detach()) for name, (total, count) in _with_total(loss).items()}
        return {"loss": self.gradients.backward_loss(loss.total, loss.count), "parts": parts, "examples": examples}

    def log_val_losses(self, loss: SummedLoss) -> None:
        """Log ``val/loss`` and validation losses by part, each weighted by its count."""
        for name, (total, count) in _with_total(loss).items():
            if count:
                self.log_val(name, total / count, int(count))

    def log_val(self, name: str, value: Tensor | float, weight: int = 1) -> None:
        """Log ``val/NAME`` of this validation batch: a mean over batches and ranks, weighted by ``weight``."""
        self.log(f"val/{name}", value, batch_size=weight, sync_dist=True, prog_bar=name == "loss", logger=False)

    def on_validation_end(self) -> None:
        """Log the validation metrics at the current step; Lightning itself would log them one step early."""
        metrics = {name: float(v) for name, v in self.trainer.callback_metrics.items() if name.startswith("val/")}
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)

    def positions(self, index: int, songs: int) -> range:
        """Indices in the run, over all ranks, of the songs of this rank's batch ``index``.

        Packed batches differ in size: each has as many indices as the largest.
        """
        batch_size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]  # set by Lightning's connector
        first = (index * self.trainer.world_size + self.global_rank) * batch_size
        return range(first, first + songs)

    def generators(self, purpose: str, positions: Sequence[int]) -> list[torch.Generator]:
        """One generator per index in the run, so that no draw depends on batch size or number of ranks."""
        return [derived_generator(self.seed, purpose, position) for position in positions]

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """Seed torch for modules that draw by themselves, such as an adapter's dropout, by the batch index alone."""
        torch.manual_seed(derived_seed(self.seed, "modules", index, self.global_rank))

    def configure_optimizers(self) -> Any:
        """The optimiser of the trained parameters, and its schedule, stepped with it."""
        optimizer = self.optimization.optimizer(
            [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        )
        # A fused optimiser would unscale fp16 gradients itself, after they were measured and clipped.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # read by torch.amp.GradScaler
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.optimization.lr(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Average and clip the gradients, and drop them where one is not finite."""
        self.gradients.average_and_clip(self.network.parameters(), self.trainer, gradient_clip_val)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that require gradients, by their names in checkpoints."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained parameters only."""
        trained = self.trained_parameters()
        checkpoint["state_dict"] = {n: value for n, value in checkpoint["state_dict"].items() if n in trained}
        checkpoint["trained"] = sorted(trained)
        checkpoint["skipped"] = self.gradients.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise ``ValueError`` if the names of the checkpoint's parameters are not those that train."""
        saved = checkpoint["trained"] if "trained" in checkpoint else checkpoint["state_dict"]
        odd = sorted(self.trained_parameters().keys() ^ set(saved))
        if odd:
            raise ValueError(
                f"run.dir: its checkpoint trains other parameters than this config ({odd[0]} and {len(odd) - 1} more); "
                "start in a new run.dir"
            )
        self.gradients.skipped = checkpoint.get("skipped", 0)


def _with_total(loss: SummedLoss) -> dict[str, tuple[Tensor, Tensor]]:
    return {"loss": (loss.total, loss.count)} | {f"loss_{name}": part for name, part in loss.parts.items()}


def freeze(network: nn.Module, trainable: str) -> None:
    """Freeze the parameters of ``network`` whose names the regular expression ``trainable`` does not match."""
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise ValueError(f"trainable={trainable}: not a regular expression ({error})") from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(pattern.search(name) is not None)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"trainable={trainable}: matches no parameter; names look like {next(iter(network.state_dict()))}"
        )
