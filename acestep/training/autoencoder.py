"""The autoencoder's training as Lightning runs it: it learns to rebuild, and to deceive judges that learn with it.

Source: Stable Audio Tools ``training/autoencoders.py``: generator and judges take turns, one batch each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from acestep.evaluation.reconstruction_study import reconstruction
from acestep.flow.noise import normal
from acestep.models.autoencoder import Oobleck
from acestep.models.discriminators import Discriminator, deceive_loss, feature_loss, judge_loss
from acestep.models.reconstruction import gaussian_kl, mel_distance, stereo_distance
from acestep.training.audio_datamodule import AudioBatch
from acestep.training.module import Optimization, Trained
from acestep.types import Posterior


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """What an autoencoder is to lower: a weighted sum. The defaults are Stable Audio's.

    Args:
        stft: weight of the multi-resolution spectral distance of the channels.
        stft_sum_difference: of the same for the channels' sum and difference.
        mel: of the mel distance.
        waveform: of the mean absolute difference of samples.
        kl: of the posterior's divergence from a standard normal, per frame; counts only where the encoder trains.
        adversarial: of the judges' verdicts.
        features: of the difference of what the judges see.
        warmup: steps before judges are heard.
        judge_rate: learning rate of the judges, as a factor on ``optimizer.lr``.
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
    judge_rate: float = 2.0
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 0:
                raise ValueError(f"rebuild.{name}={value:g}: need >= 0")
        if not self.stft + self.stft_sum_difference + self.mel + self.waveform:
            raise ValueError("rebuild: need a weight above 0 among stft, stft_sum_difference, mel and waveform")

    def distances(self, made: Tensor, wanted: Tensor, sample_rate: int) -> dict[str, Float[Tensor, ""]]:
        """The distances of waveforms that have a weight, by their names here."""
        found = stereo_distance(made, wanted) if self.stft or self.stft_sum_difference else {}
        if self.mel:
            found["mel"] = mel_distance(made, wanted, sample_rate)
        if self.waveform:
            found["waveform"] = (made - wanted).abs().mean()
        return found

    def total(self, terms: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The weighted sum of ``terms``."""
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()


class AutoencoderModule(Trained):
    """Trains an Oobleck autoencoder, or its decoder alone where the encoder is frozen.

    Args:
        autoencoder: trained in place, as far as its parameters require gradients.
        discriminator: its judges.
        rebuild: the loss.
        optimization: of the autoencoder; the judges' is the same at another rate.
        seed: of the run.
    """

    def __init__(
        self,
        autoencoder: Oobleck,
        discriminator: Discriminator,
        rebuild: Rebuild,
        optimization: Optimization,
        seed: int,
    ) -> None:
        super().__init__(autoencoder, optimization, seed)
        self.automatic_optimization = False
        self.discriminator = discriminator
        self.rebuild = rebuild
        self.moments = torch.zeros(3, dtype=torch.float64)
        self.encoder_trains = any(parameter.requires_grad for parameter in autoencoder.encoder.parameters())

    def configure_model(self) -> None:
        """Under DDP, expect that each step leaves one of the two networks alone."""
        super().configure_model()
        if isinstance(self.trainer.strategy, DDPStrategy):
            self.trainer.strategy._ddp_kwargs["find_unused_parameters"] = True

    @property
    def judged(self) -> bool:
        """Whether judges are heard in this step."""
        return self.rebuild.adversarial + self.rebuild.features > 0 and self.global_step >= self.rebuild.warmup

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The autoencoder's optimiser and the judges'."""
        make = self.optimization.optimizer
        named = [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]
        faster = replace(make, lr=make.lr * self.rebuild.judge_rate)
        return [make(named), faster(list(self.discriminator.named_parameters()))]

    def training_step(self, batch: AudioBatch, index: int) -> dict[str, Any]:
        """One step of the autoencoder, or, in every second step that judges are heard in, one of the judges."""
        generator, judge = self.optimizers()
        positions = self.positions(index, len(batch))
        if self.judged and self.global_step % 2:
            with torch.no_grad():
                made, _ = self._rebuilt(batch.audio, positions)
            loss = judge_loss(self.discriminator(batch.audio), self.discriminator(made))
            self._step(judge, loss, self.discriminator)
            found = {"loss_judge": loss}
        else:
            with generator.toggle_model():
                terms = self._terms(batch.audio, positions)
                loss = self.rebuild.total(terms)
                self._step(generator, loss, self.network)
            found = {"loss": loss} | {f"loss_{name}": term for name, term in terms.items()}
        one = torch.ones((), device=self.device)
        return {"parts": {name: (value.detach(), one) for name, value in found.items()}, "examples": len(batch)}

    def validation_step(self, batch: AudioBatch, index: int) -> None:
        """How near reconstructions of held-out pieces from the posterior's mean come, and what the latents are like."""
        posterior = self.network.encode(batch.audio)
        made = self.network.decode(posterior.mean)[..., : batch.audio.shape[-1]]
        wanted = batch.audio[..., : made.shape[-1]]
        terms = self.rebuild.distances(made, wanted, self.network.sample_rate)
        values = {f"loss_{name}": term for name, term in terms.items()} | {"loss": self.rebuild.total(terms)}
        latents = posterior.mean.cpu().double()
        self.moments += torch.stack([torch.ones_like(latents).sum(), latents.sum(), latents.square().sum()])
        values |= {"latent_scale": posterior.scale.mean(), "kl": gaussian_kl(posterior.mean, posterior.scale)}
        for one, other in zip(made, wanted, strict=True):
            for name, value in reconstruction(one, other, self.network.sample_rate).items():
                self.note(name, value)
        for name, value in values.items():
            self.note(name, value, len(batch))

    def on_validation_epoch_end(self) -> None:
        """Mean and spread of all latents of the held-out pieces."""
        count, total, squares = self.of_all_ranks(self.moments.float()).double()
        mean = total / count
        self.note("latent_mean", float(mean))
        self.note("latent_std", float((squares / count - mean.square()).clamp(min=0).sqrt()))
        self.moments.zero_()

    def _terms(self, audio: Tensor, positions: range) -> dict[str, Float[Tensor, ""]]:
        made, posterior = self._rebuilt(audio, positions)
        audio = audio[..., : made.shape[-1]]
        terms = self.rebuild.distances(made, audio, self.network.sample_rate)
        if self.encoder_trains:
            terms["kl"] = gaussian_kl(posterior.mean, posterior.scale)
        if self.judged:
            with torch.no_grad():
                real = self.discriminator(audio)
            seen = self.discriminator(made)
            terms |= {"adversarial": deceive_loss(seen), "features": feature_loss(real, seen)}
        return terms

    def _rebuilt(self, audio: Tensor, positions: range) -> tuple[Tensor, Posterior]:
        with torch.set_grad_enabled(self.encoder_trains and torch.is_grad_enabled()):
            posterior = self.network.encode(audio)
        noise = normal(posterior.mean.shape, self.generators("posterior", positions)).to(posterior.mean)
        return self.network.decode(posterior.sample(noise))[..., : audio.shape[-1]], posterior

    def _step(self, optimizer: LightningOptimizer, loss: Tensor, moved: nn.Module) -> None:
        share = self.optimization.lr(self.global_step, int(self.trainer.estimated_stepping_batches))
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * share
        optimizer.zero_grad()
        self.manual_backward(loss)
        parameters = [parameter for parameter in moved.parameters() if parameter.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.rebuild.gradient_clip or float("inf"))
        self.gradients.norm = norm
        if not norm.isfinite():
            self.gradients.skipped += 1
            optimizer.zero_grad()
        optimizer.step()
