"""The audio tokenizer's training as Lightning runs it: latents to 5 Hz codes and back, as near as codes allow."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.data import LatentBatch
from acestep.pipeline import Pipeline
from acestep.training.codes import code_use
from acestep.training.dit import latents
from acestep.training.module import Optimization, PartLoss, Trained

FLOOR = 1e-8


class TokenizerModule(Trained):
    """Trains a network's tokenizer and detokenizer on the mean squared error of latents after a round trip.

    The quantiser passes gradients straight through its rounding and has no codebook to learn, so that there is
    nothing to commit to and nothing else to add.

    Args:
        pipeline: the parts of the model; its network is trained in place.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; latents are drawn from the autoencoder's posterior anew each time.
    """

    def __init__(self, pipeline: Pipeline, optimization: Optimization, seed: int) -> None:
        super().__init__(pipeline.network, optimization, seed)
        self.pipeline = pipeline
        self.silence = pipeline.conditioner.silence
        self.counts = torch.zeros(self.network.tokenizer.quantizer.codebook_size)

    def training_step(self, batch: LatentBatch, index: int) -> dict[str, Any]:
        """One batch's share of its step's loss."""
        drawn = latents(batch, self.generators("posterior", self.positions(index, len(batch))))
        loss, _ = self._loss(drawn, batch)
        return self.step_of(loss, len(batch))

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """The error of held-out songs, and what share of their variance the round trip explains."""
        clean = batch.mean.float()
        loss, codes = self._loss(clean, batch)
        self.log_parts(loss)
        heard = clean[batch.frame_mask]
        share = 1.0 - loss.total / (heard - heard.mean(0)).square().sum().clamp(min=FLOOR)
        self.note("explained_variance", share, len(heard))
        used = codes[self.network.tokenizer.code_mask(batch.frame_mask)]
        self.counts += torch.bincount(used, minlength=len(self.counts)).cpu()

    def on_validation_epoch_end(self) -> None:
        """How the held-out songs use the codes."""
        counts = self.trainer.strategy.reduce(self.counts.to(self.device), reduce_op="sum").cpu()
        for name, value in code_use(counts).items():
            self.note(f"code_{name}", value)
        self.counts.zero_()

    def _loss(self, clean: Float[Tensor, "b t c"], batch: LatentBatch) -> tuple[PartLoss, Tensor]:
        quantized, codes = self.network.tokenizer(clean, self.silence.to(clean))
        again = self.network.detokenizer(quantized)[:, : clean.shape[1]]
        errors = (again - clean).square()[batch.frame_mask]
        count = torch.tensor(float(errors.numel()), device=errors.device)
        return PartLoss(errors.sum(), count, {}), codes
