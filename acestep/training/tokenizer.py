"""The audio tokenizer's training as Lightning runs it: latents to 5 Hz codes and back, as near as codes allow."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.data import LatentBatch
from acestep.pipeline.pipeline import Pipeline
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
        self.moments = torch.zeros(3 + pipeline.autoencoder.latent_channels, dtype=torch.float64)

    def training_step(self, batch: LatentBatch, index: int) -> dict[str, Any]:
        """One batch's share of its step's loss."""
        drawn = latents(batch, self.generators("posterior", self.positions(index, len(batch))))
        loss, _ = self._loss(drawn, batch)
        return self.step_of(loss, len(batch))

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """The error of held-out songs."""
        clean = batch.mean.float()
        loss, codes = self._loss(clean, batch)
        self.log_parts(loss)
        heard = clean[batch.frame_mask].cpu().double()
        apart = torch.stack([loss.total.cpu().double(), heard.square().sum(), torch.tensor(len(heard)).to(heard)])
        self.moments += torch.cat([apart, heard.sum(0)])
        used = codes[self.network.tokenizer.code_mask(batch.frame_mask)]
        self.counts += torch.bincount(used, minlength=len(self.counts)).cpu()

    def on_validation_epoch_end(self) -> None:
        """How much of all held-out frames the round trip explains, and how they use the codes."""
        error, squares, frames, *sums = self.of_all_ranks(self.moments.float()).double()
        variance = squares - torch.stack(sums).square().sum() / frames
        self.note("explained_variance", float(1.0 - error / variance.clamp(min=FLOOR)))
        for name, value in code_use(self.of_all_ranks(self.counts)).items():
            self.note(f"code_{name}", value)
        self.counts.zero_()
        self.moments.zero_()

    def _loss(self, clean: Float[Tensor, "b t c"], batch: LatentBatch) -> tuple[PartLoss, Tensor]:
        quantized, codes = self.network.tokenizer(self._filled(clean, batch.frame_mask), self.silence.to(clean))
        again = self.network.detokenizer(quantized)[:, : clean.shape[1]]
        errors = (again - clean).square()[batch.frame_mask]
        count = torch.tensor(float(errors.numel()), device=errors.device)
        return PartLoss(errors.sum(), count, {}), codes

    def _filled(self, clean: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b u c"]:
        """Every song up to its last code's end as if it were alone: silence from its start, not a batch's padding."""
        window = self.network.tokenizer.window
        missing = -clean.shape[1] % window
        clean, mask = F.pad(clean, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        after = (~mask).cumsum(1).sub(1).clamp(0, window - 1)
        return torch.where(mask[..., None], clean, self.silence[0].to(clean)[after])
