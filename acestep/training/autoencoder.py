"""Training of the autoencoder as a LightningModule: reconstruction, with a discriminator that trains in turn.

Source: Stable Audio Tools ``training/autoencoders.py``: generator and discriminator take turns, one batch each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from acestep.evaluation.reconstruction_study import reconstruction_metrics
from acestep.flow.noise import normal
from acestep.models.autoencoder import Oobleck
from acestep.models.discriminators import Discriminator, discriminator_loss, feature_loss, generator_loss
from acestep.models.reconstruction import gaussian_kl, mel_distance, stereo_distance
from acestep.training.audio_datamodule import AudioBatch
from acestep.training.module import Optimization, TrainingModule
from acestep.types import Posterior


@dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """Weights of the loss terms of an autoencoder. The defaults are Stable Audio's.

    Args:
        stft: weight of the multi-resolution spectral distance of the channels.
        stft_sum_difference: weight of the same distance for the channels' sum and difference.
        mel: weight of the mel distance.
        waveform: weight of the mean absolute difference of samples.
        kl: weight of the posterior's KL divergence from a standard normal, per frame; unused with a frozen encoder.
        adversarial: weight of the discriminator's output.
        features: weight of the feature-matching loss.
        warmup: steps before the discriminator is used.
        discriminator_lr_factor: learning rate of the discriminator, as a factor on ``optimizer.lr``.
        gradient_clip: largest global norm of a gradient; ``None`` clips nothing.
    """

    stft: float = 0.5
    stft_sum_difference: float = 1.0
    mel: float = 0.0
    waveform: float = 0.0
    kl: float = 1e-4
    adversarial: float = 0.1
    features: float = 5.0
    warmup: int = 0
    discriminator_lr_factor: float = 2.0
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 0:
                raise ValueError(f"task.loss.{name}={value:g}: need >= 0")
        if not self.stft + self.stft_sum_difference + self.mel + self.waveform:
            raise ValueError("task.loss: need a weight above 0 among stft, stft_sum_difference, mel and waveform")

    def distances(self, made: Tensor, target: Tensor, sample_rate: int) -> dict[str, Float[Tensor, ""]]:
        """The distances of waveforms that have a weight, by the weight's name."""
        distances = stereo_distance(made, target) if self.stft or self.stft_sum_difference else {}
        if self.mel:
            distances["mel"] = mel_distance(made, target, sample_rate)
        if self.waveform:
            distances["waveform"] = (made - target).abs().mean()
        return distances

    def weighted_sum(self, terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()


class AutoencoderModule(TrainingModule):
    """Trains an Oobleck autoencoder, or its decoder alone where the encoder is frozen.

    Args:
        autoencoder: trained in place, where its parameters require gradients.
        discriminator: trained with it.
        reconstruction_loss: weights of the loss terms.
        optimization: of the autoencoder; the discriminator's differs in the learning rate.
        seed: of the run.
    """

    network: Oobleck

    def __init__(
        self,
        autoencoder: Oobleck,
        discriminator: Discriminator,
        reconstruction_loss: ReconstructionLoss,
        optimization: Optimization,
        seed: int,
    ) -> None:
        super().__init__(autoencoder, optimization, seed)
        self.automatic_optimization = False
        self.discriminator = discriminator
        self.reconstruction_loss = reconstruction_loss
        self.moments = torch.zeros(3, dtype=torch.float64)  # of validation latents: number, sum, sum of squares
        self.encoder_trains = any(parameter.requires_grad for parameter in autoencoder.encoder.parameters())

    def configure_model(self) -> None:
        """Let DDP expect unused parameters: each step trains one of the two networks."""
        super().configure_model()
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    @property
    def uses_discriminator(self) -> bool:
        """Whether the discriminator is used in this step."""
        loss = self.reconstruction_loss
        return loss.adversarial + loss.features > 0 and self.global_step >= loss.warmup

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The autoencoder's optimiser and the discriminator's."""
        generator = self.optimization.optimizer
        discriminator = replace(generator, lr=generator.lr * self.reconstruction_loss.discriminator_lr_factor)
        named = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        return [generator(named), discriminator(list(self.discriminator.named_parameters()))]

    def training_step(self, batch: AudioBatch, index: int) -> dict[str, Any]:
        """One step of the autoencoder, or, at every second step that uses it, one of the discriminator."""
        generator, discriminator = cast("list[LightningOptimizer]", self.optimizers())
        positions = self.positions(index, len(batch))
        if self.uses_discriminator and self.global_step % 2:
            with torch.no_grad():
                made, _ = self._reconstruct(batch.audio, positions)
            loss = discriminator_loss(self.discriminator(batch.audio), self.discriminator(made))
            self._step(discriminator, loss, self.discriminator)
            losses = {"loss_judge": loss}
        else:
            with generator.toggle_model():
                terms = self._terms(batch.audio, positions)
                loss = self.reconstruction_loss.weighted_sum(terms)
                self._step(generator, loss, self.network)
            losses = {"loss": loss} | {f"loss_{name}": term for name, term in terms.items()}
        one = torch.ones((), device=self.device)
        return {"parts": {name: (value.detach(), one) for name, value in losses.items()}, "examples": len(batch)}

    def validation_step(self, batch: AudioBatch, index: int) -> None:
        """Reconstruction of held-out crops from the posterior's mean, and statistics of the latents."""
        posterior = self.network.encode(batch.audio)
        made = self.network.decode(posterior.mean)[..., : batch.audio.shape[-1]]
        target = batch.audio[..., : made.shape[-1]]
        terms = self.reconstruction_loss.distances(made, target, self.network.sample_rate)
        losses = {f"loss_{name}": term for name, term in terms.items()}
        losses["loss"] = self.reconstruction_loss.weighted_sum(terms)
        latents = posterior.mean.cpu().double()
        self.moments += torch.stack([torch.ones_like(latents).sum(), latents.sum(), latents.square().sum()])
        losses |= {"latent_scale": posterior.scale.mean(), "kl": gaussian_kl(posterior.mean, posterior.scale)}
        for pair in zip(made, target, strict=True):
            for name, metric in reconstruction_metrics(*pair, self.network.sample_rate).items():
                self.log_val(name, metric)
        for name, value in losses.items():
            self.log_val(name, value, len(batch))

    def on_validation_epoch_end(self) -> None:
        """Mean and standard deviation of all latents of the held-out crops."""
        count, total, squares = self.sum_over_ranks(self.moments.float()).double()
        mean = total / count
        self.log_val("latent_mean", float(mean))
        self.log_val("latent_std", float((squares / count - mean.square()).clamp(min=0).sqrt()))
        self.moments.zero_()

    def _terms(self, audio: Tensor, positions: range) -> dict[str, Float[Tensor, ""]]:
        made, posterior = self._reconstruct(audio, positions)
        audio = audio[..., : made.shape[-1]]
        terms = self.reconstruction_loss.distances(made, audio, self.network.sample_rate)
        if self.encoder_trains:
            terms["kl"] = gaussian_kl(posterior.mean, posterior.scale)
        if self.uses_discriminator:
            with torch.no_grad():
                real = self.discriminator(audio)
            fake = self.discriminator(made)
            terms |= {"adversarial": generator_loss(fake), "features": feature_loss(real, fake)}
        return terms

    def _reconstruct(self, audio: Tensor, positions: range) -> tuple[Tensor, Posterior]:
        with torch.set_grad_enabled(self.encoder_trains and torch.is_grad_enabled()):
            posterior = self.network.encode(audio)
        noise = normal(posterior.mean.shape, self.generators("posterior", positions)).to(posterior.mean)
        return self.network.decode(posterior.sample(noise))[..., : audio.shape[-1]], posterior

    def _step(self, optimizer: LightningOptimizer, loss: Tensor, trained: nn.Module) -> None:
        factor = self.optimization.lr(self.global_step, int(self.trainer.estimated_stepping_batches))
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * factor
        optimizer.zero_grad()
        self.manual_backward(loss)
        parameters = [parameter for parameter in trained.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.reconstruction_loss.gradient_clip or float("inf"))
        self.gradients.norm = norm
        if not norm.isfinite():
            self.gradients.skipped += 1
            optimizer.zero_grad()
        optimizer.step()
