"""Oobleck, the waveform autoencoder: weight-normalised convolutions and Snake activations, published parameter names.

Shapes: B songs, A audio channels, S samples, T latent frames, C latent channels. Inside, tensors are channels first;
latents outside are (B, T, C).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from acestep.audio.tiling import Stage, run_stages
from acestep.types import Posterior

DILATIONS = (1, 3, 9)
RESIDUAL_CONTEXT = 3 * sum(DILATIONS)
"""Half the receptive field of three residual units, in positions on either side."""
SCALE_FLOOR = 1e-4
UNUSED = frozenset({"_class_name", "_diffusers_version", "_name_or_path"})


@dataclass(frozen=True, kw_only=True)
class OobleckConfig:
    """Sizes under the names of the published ``config.json``; the defaults are the release's.

    The encoder's stride at stage i is ``downsampling_ratios[i]`` and its channels there
    ``encoder_hidden_size * channel_multiples[i]``; the decoder mirrors both.
    """

    encoder_hidden_size: int = 128
    downsampling_ratios: tuple[int, ...] = (2, 4, 4, 6, 10)
    channel_multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    decoder_channels: int = 128
    decoder_input_channels: int = 64
    audio_channels: int = 2
    sampling_rate: int = 48000

    def __post_init__(self) -> None:
        for name in ("downsampling_ratios", "channel_multiples"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in fields(self):
            value = getattr(self, field.name)
            if not value or min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ValueError(f"{field.name}={value}: need at least 1 everywhere")
        if len(self.channel_multiples) != len(self.downsampling_ratios):
            raise ValueError(
                f"channel_multiples={self.channel_multiples}: need one for each of "
                f"downsampling_ratios={self.downsampling_ratios}"
            )
        if self.encoder_hidden_size != 2 * self.decoder_input_channels:
            raise ValueError(
                f"encoder_hidden_size={self.encoder_hidden_size}: need 2 x decoder_input_channels="
                f"{self.decoder_input_channels}; the encoder's output is a mean and a scale for each latent channel"
            )

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> OobleckConfig:
        """From a published ``config.json``; raises ``ValueError`` for unknown keys."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(published) - known - UNUSED)
        if unknown:
            raise ValueError(f"{unknown[0]}={published[unknown[0]]!r}: not a key of an Oobleck config; remove it")
        return cls(**{name: value for name, value in published.items() if name in known})

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.downsampling_ratios)


class WeightNorm(nn.Module):
    """Weight normalisation: magnitude ``weight_g`` times direction ``weight_v``, per slice along the first axis."""

    def __init__(self, shape: tuple[int, int, int], bias: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(shape[0], 1, 1))
        self.weight_v = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None

    @property
    def weight(self) -> Float[Tensor, "o i k"]:
        return self.weight_v * (self.weight_g / torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True))


class Conv(WeightNorm):
    """Weight-normalised Conv1d."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: int,
        bias: bool = True,
    ) -> None:
        super().__init__((outputs, inputs, kernel), outputs if bias else 0)
        self.stride, self.dilation, self.padding = stride, dilation, padding

    def forward(self, x: Float[Tensor, "b i s"]) -> Float[Tensor, "b o t"]:
        return F.conv1d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    @property
    def stage(self) -> Stage:
        """As a stage of tiled processing; for convolutions that keep the length."""
        return Stage(self, Fraction(1), self.padding, max(self.weight_v.shape[:2]))


class ConvTranspose(WeightNorm):
    """Weight-normalised ConvTranspose1d that upsamples by ``stride``."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__((inputs, outputs, 2 * stride), outputs)
        self.stride = stride

    def forward(self, x: Float[Tensor, "b i t"]) -> Float[Tensor, "b o s"]:
        return F.conv_transpose1d(x, self.weight, self.bias, self.stride, padding=math.ceil(self.stride / 2))


class Snake(nn.Module):
    """``x + sin(a x)^2 / b`` with learned ``a`` and ``b`` per channel, stored as logarithms (Ziyin et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Float[Tensor, "b c s"]) -> Float[Tensor, "b c s"]:
        return x + torch.sin(self.alpha.exp() * x).square() / (self.beta.exp() + 1e-9)


class ResidualUnit(nn.Module):
    """A dilated and a pointwise convolution with a skip connection."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = Conv(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(channels)
        self.conv2 = Conv(channels, channels, 1, padding=0)

    def forward(self, x: Float[Tensor, "b c s"]) -> Float[Tensor, "b c s"]:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class EncoderBlock(nn.Module):
    """Three residual units, then a strided convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(inputs, dilation) for dilation in DILATIONS)
        self.snake1 = Snake(inputs)
        self.conv1 = Conv(inputs, outputs, 2 * stride, stride=stride, padding=math.ceil(stride / 2))

    def forward(self, x: Float[Tensor, "b i s"]) -> Float[Tensor, "b o t"]:
        x = self.res_unit3(self.res_unit2(self.res_unit1(x)))
        return self.conv1(self.snake1(x))

    @property
    def stage(self) -> Stage:
        """As a stage of tiled processing."""
        stride, (outputs, inputs, _) = self.conv1.stride, self.conv1.weight_v.shape
        return Stage(self, Fraction(1, stride), RESIDUAL_CONTEXT + 2 * stride, max(inputs, outputs // stride))


class DecoderBlock(nn.Module):
    """A transposed convolution, then three residual units."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(inputs)
        self.conv_t1 = ConvTranspose(inputs, outputs, stride)
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(outputs, dilation) for dilation in DILATIONS)

    def forward(self, x: Float[Tensor, "b i t"]) -> Float[Tensor, "b o s"]:
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))

    @property
    def stage(self) -> Stage:
        """As a stage of tiled processing."""
        stride, (inputs, outputs, _) = self.conv_t1.stride, self.conv_t1.weight_v.shape
        return Stage(self, Fraction(stride), math.ceil(RESIDUAL_CONTEXT / stride) + 2, max(inputs, outputs * stride))


class TiledStack(nn.Module):
    """Convolution, blocks, Snake, convolution; long inputs are processed in tiles with the same result."""

    conv1: Conv
    block: nn.ModuleList
    snake1: Snake
    conv2: Conv

    def forward(self, x: Float[Tensor, "b i n"]) -> Float[Tensor, "b o m"]:
        blocks = cast(Iterable[EncoderBlock | DecoderBlock], self.block)
        last = replace(self.conv2.stage, function=nn.Sequential(self.snake1, self.conv2))
        return run_stages([self.conv1.stage, *(block.stage for block in blocks), last], x)


class OobleckEncoder(TiledStack):
    """Waveform to the posterior's parameters, channels first: means, then scales before softplus."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        width = config.encoder_hidden_size
        channels = [width * multiple for multiple in (1, *config.channel_multiples)]
        self.conv1 = Conv(config.audio_channels, width, 7, padding=3)
        self.block = nn.ModuleList(
            EncoderBlock(inputs, outputs, stride)
            for inputs, outputs, stride in zip(channels[:-1], channels[1:], config.downsampling_ratios, strict=True)
        )
        self.snake1 = Snake(channels[-1])
        self.conv2 = Conv(channels[-1], width, 3, padding=1)


class OobleckDecoder(TiledStack):
    """Latents, channels first, to waveform; the output is not bounded to [-1, 1]."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        channels = [config.decoder_channels * multiple for multiple in (1, *config.channel_multiples)][::-1]
        self.conv1 = Conv(config.decoder_input_channels, channels[0], 7, padding=3)
        self.block = nn.ModuleList(
            DecoderBlock(inputs, outputs, stride)
            for inputs, outputs, stride in zip(
                channels[:-1], channels[1:], reversed(config.downsampling_ratios), strict=True
            )
        )
        self.snake1 = Snake(channels[-1])
        self.conv2 = Conv(channels[-1], config.audio_channels, 7, padding=3, bias=False)


class Oobleck(nn.Module):
    """The published autoencoder: 48 kHz stereo to 64 channels at 25 Hz and back. There is no latent scaling factor."""

    def __init__(self, config: OobleckConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sampling_rate
        self.hop = config.hop
        self.audio_channels = config.audio_channels
        self.latent_channels = config.decoder_input_channels
        self.encoder = OobleckEncoder(config)
        self.decoder = OobleckDecoder(config)

    def encode(self, audio: Float[Tensor, "b a s"]) -> Posterior:
        """Posterior of the whole frames of ``audio``; samples after the last one are dropped.

        Raises:
            ValueError: ``audio`` is shorter than a frame.
        """
        if audio.shape[-1] < self.hop:
            raise ValueError(f"audio has {audio.shape[-1]} samples: need at least one frame of {self.hop}")
        mean, scale = self.encoder(audio).transpose(1, 2).chunk(2, dim=-1)
        return Posterior(mean=mean, scale=F.softplus(scale) + SCALE_FLOOR)

    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveform of ``latents``, ``hop`` samples per frame."""
        return self.decoder(latents.transpose(1, 2))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialisation for training from scratch, from ``generator`` only.

        Weights have the distribution of torch's convolutions; Snake starts with frequency and magnitude 1.
        """
        for module in self.modules():
            if isinstance(module, Snake):
                module.alpha.zero_()
                module.beta.zero_()
            elif isinstance(module, WeightNorm):
                bound = module.weight_v[0].numel() ** -0.5
                module.weight_v.uniform_(-bound, bound, generator=generator)
                module.weight_g.copy_(torch.linalg.vector_norm(module.weight_v, dim=(1, 2), keepdim=True))
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
