"""Multi-scale STFT discriminator and its losses, for adversarial training of the autoencoder.

Source: Défossez et al. 2022 (arXiv 2210.13438), section 3.4; EnCodec's ``msstftd.py``. Convolutions are
weight-normalised. Shapes: B songs, A audio channels, S samples, F frequencies, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

DILATIONS = (1, 2, 4)
SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of the multi-scale STFT discriminator.

    Args:
        channels: of every layer; EnCodec has 32, Stable Audio's autoencoder 64.
        sizes: FFT sizes in samples, one discriminator each; hops are a quarter of them.
        audio_channels: of the waveform.
    """

    channels: int = 64
    sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    audio_channels: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if self.channels < 1 or not self.sizes or min(self.sizes) < 8:
            raise ValueError(f"discriminator.sizes={list(self.sizes)}: need transforms of at least 8 samples")


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Logits of one discriminator (positive: real) and the activations of its hidden layers."""

    logits: Float[Tensor, "b 1 t f"]
    features: list[Tensor]


class STFTDiscriminator(nn.Module):
    """Discriminator on the complex STFT at one resolution."""

    window: Tensor

    def __init__(self, config: DiscriminatorConfig, size: int) -> None:
        super().__init__()
        self.size = size
        width = config.channels
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        # Dimensions are (time, frequency): kernels span 3 frames and 9 bins, strides are along frequency only.
        layers = [_conv(2 * config.audio_channels, width, (3, 9))]
        layers += [_conv(width, width, (3, 9), stride=(1, 2), dilation=(dilation, 1)) for dilation in DILATIONS]
        layers += [_conv(width, width, (3, 3))]
        self.layers = nn.ModuleList(layers)
        self.last = _conv(width, 1, (3, 3))

    def forward(self, audio: Float[Tensor, "b a s"]) -> DiscriminatorOutput:
        """Zero-pads ``audio`` that is shorter than the window."""
        audio = F.pad(audio.float(), (0, max(0, self.size - audio.shape[-1])))
        spectrum = torch.stft(
            audio.flatten(0, 1), self.size, self.size // 4, window=self.window, normalized=True, return_complex=True
        )
        parts = torch.view_as_real(spectrum).unflatten(0, audio.shape[:2])  # (B, A, F, T, 2)
        x = parts.permute(0, 1, 4, 3, 2).flatten(1, 2)  # (B, 2A, T, F)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return DiscriminatorOutput(self.last(x), features)


class Discriminator(nn.Module):
    """STFT discriminators at several resolutions."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        # Saved training checkpoints name the parameters ``judges.*``.
        self.judges = nn.ModuleList(STFTDiscriminator(config, size) for size in config.sizes)

    def forward(self, audio: Float[Tensor, "b a s"]) -> list[DiscriminatorOutput]:
        """One output for each resolution."""
        return [discriminator(audio) for discriminator in self.judges]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initial weights with the distribution of torch's convolutions, from ``generator`` only."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                module.weight = torch.empty_like(module.weight).uniform_(-bound, bound, generator=generator)
                assert module.bias is not None
                module.bias.uniform_(-bound, bound, generator=generator)


def discriminator_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Float[Tensor, ""]:
    """Hinge loss of the discriminators (Lim and Ye 2017, arXiv 1705.02894), averaged over resolutions."""
    losses = [
        F.relu(1 - one.logits).mean() + F.relu(1 + other.logits).mean() for one, other in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).mean()


def generator_loss(fake: list[DiscriminatorOutput]) -> Float[Tensor, ""]:
    """Adversarial loss of the autoencoder: minus the logits of its output, averaged over resolutions."""
    return torch.stack([-output.logits.mean() for output in fake]).mean()


def feature_loss(real: list[DiscriminatorOutput], fake: list[DiscriminatorOutput]) -> Float[Tensor, ""]:
    """Feature matching: mean absolute difference, relative to the real features of each song (EnCodec, equation 5)."""
    losses = [
        ((other - one.detach()).abs().flatten(1).mean(1) / one.detach().abs().flatten(1).mean(1).clamp(min=1e-8)).mean()
        for real_one, fake_one in zip(real, fake, strict=True)
        for one, other in zip(real_one.features, fake_one.features, strict=True)
    ]
    return torch.stack(losses).mean()


Kernel = tuple[int, int]


def _conv(inputs: int, outputs: int, kernel: Kernel, stride: Kernel = (1, 1), dilation: Kernel = (1, 1)) -> nn.Module:
    padding = ((kernel[0] - 1) * dilation[0] // 2, (kernel[1] - 1) * dilation[1] // 2)
    return weight_norm(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation))
