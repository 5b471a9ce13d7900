"""Training of the audio tokenizer as a LightningModule: latents to 5 Hz codes and back, by mean squared error."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.data import LatentBatch
from acestep.models.acestep import AceStep
from acestep.pipeline.pipeline import Pipeline
from acestep.training.dit import sample_latents
from acestep.training.module import Optimization, SummedLoss, TrainingModule


class TokenizerModule(TrainingModule):
    """Trains a network's tokenizer and detokenizer on the mean squared error of reconstructed latents.

    The quantiser is finite scalar quantisation: gradients pass straight through its rounding and no codebook is
    learned, so that the loss has no commitment or codebook term.

    Args:
        pipeline: the parts of the model; its network is trained in place.
        optimization: optimiser and learning-rate schedule.
        seed: of the run; latents are sampled from the autoencoder's posterior in every step.
    """

    network: AceStep

    def __init__(self, pipeline: Pipeline, optimization: Optimization, seed: int) -> None:
        super().__init__(pipeline.network, optimization, seed)
        self.pipeline = pipeline
        self.silence = pipeline.conditioner.silence
        self.counts = torch.zeros(self.network.tokenizer.quantizer.codebook_size)
        # Of validation latents: squared error, sum of squares, number of frames, and the sum of each channel.
        self.moments = torch.zeros(3 + pipeline.autoencoder.latent_channels, dtype=torch.float64)

    def training_step(self, batch: LatentBatch, index: int) -> dict[str, Any]:
        drawn = sample_latents(batch, self.generators("posterior", self.positions(index, len(batch))))
        loss, _ = self._loss(drawn, batch)
        return self.training_output(loss, len(batch))

    def validation_step(self, batch: LatentBatch, index: int) -> None:
        """The error of held-out songs from the means of their latents."""
        clean = batch.mean.float()
        loss, codes = self._loss(clean, batch)
        self.log_val_losses(loss)
        frames = clean[batch.frame_mask].cpu().double()
        sums = torch.stack([loss.total.cpu().double(), frames.square().sum(), torch.tensor(len(frames)).to(frames)])
        self.moments += torch.cat([sums, frames.sum(0)])
        used = codes[self.network.tokenizer.code_mask(batch.frame_mask)]
        self.counts += torch.bincount(used, minlength=len(self.counts)).cpu()

    def on_validation_epoch_end(self) -> None:
        """Explained variance over all held-out frames, and code usage."""
        error, squares, frames, *sums = self.sum_over_ranks(self.moments.float()).double()
        variance = squares - torch.stack(sums).square().sum() / frames
        self.log_val("explained_variance", float(1.0 - error / variance.clamp(min=1e-8)))
        for name, value in code_usage(self.sum_over_ranks(self.counts)).items():
            self.log_val(f"code_{name}", value)
        self.counts.zero_()
        self.moments.zero_()

    def _loss(self, clean: Float[Tensor, "b t c"], batch: LatentBatch) -> tuple[SummedLoss, Tensor]:
        quantized, codes = self.network.tokenizer(self._pad(clean, batch.frame_mask), self.silence.to(clean))
        reconstructed = self.network.detokenizer(quantized)[:, : clean.shape[1]]
        errors = (reconstructed - clean).square()[batch.frame_mask]
        count = torch.tensor(float(errors.numel()), device=errors.device)
        return SummedLoss(errors.sum(), count, {}), codes

    def _pad(self, clean: Float[Tensor, "b t c"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b u c"]:
        """Pad to whole codes with silence after each song's end, as for a song alone, instead of the batch's zeros."""
        window = self.network.tokenizer.window
        missing = -clean.shape[1] % window
        clean, mask = F.pad(clean, (0, 0, 0, missing)), F.pad(mask, (0, missing))
        after_end = (~mask).cumsum(1).sub(1).clamp(0, window - 1)
        return torch.where(mask[..., None], clean, self.silence[0].to(clean)[after_end])


def code_usage(counts: Float[Tensor, " n"]) -> dict[str, float]:
    """``share`` of the codes that occur, and ``perplexity`` of their distribution."""
    shares = counts / counts.sum().clamp(min=1)
    perplexity = float(torch.exp(-torch.xlogy(shares, shares).sum()))
    return {"share": float((counts > 0).float().mean()), "perplexity": perplexity}
