"""Latents to 5 Hz codes and back: attention pooler, finite scalar quantization, detokenizer.

Shapes: B songs, T latent frames, W frames per code, G = ceil(T / W) codes, C latent channels, E width, L levels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from acestep.models.layers import Encoder, StackConfig


class FSQ(nn.Module):
    """Finite scalar quantization: a vector to one of ``prod(levels)`` codes and back.

    Computes in float32 whatever the dtype of weights and input: rounding to a level is sensitive to precision.
    Source: upstream, ``ResidualFSQ`` of vector-quantize-pytorch with one stage.
    """

    def __init__(self, width: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.project_in = nn.Linear(width, len(levels))
        self.project_out = nn.Linear(len(levels), width)

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    def forward(self, x: Float[Tensor, "*b e"]) -> tuple[Float[Tensor, "*b e"], Int[Tensor, "*b"]]:
        """The quantized vectors, with straight-through gradients, and their codes."""
        with torch.autocast(x.device.type, enabled=False):
            z = F.linear(x.float(), self.project_in.weight.float(), self.project_in.bias.float())
            steps = self._levels(z) - 1
            soft = 1 + 1 / steps
            z = (soft * torch.tanh(z / soft)).clamp(-1, 1)
            digits = torch.floor(steps * (z + 1) / 2 + 0.5)
            values = z + (2 * digits / steps - 1 - z).detach()
            return self._project_out(values).to(x.dtype), (digits.long() * self._basis(z)).sum(-1)

    def values(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b l"]:
        """Each code's coordinates in [-1, 1], float32."""
        levels = self._levels(codes)
        digits = (codes.unsqueeze(-1) // self._basis(codes)) % levels.long()
        return 2 * digits / (levels - 1) - 1

    def decode(self, codes: Int[Tensor, "*b"]) -> Float[Tensor, "*b e"]:
        """The quantized vectors of ``codes``."""
        with torch.autocast(codes.device.type, enabled=False):
            return self._project_out(self.values(codes)).to(self.project_out.weight.dtype)

    def _project_out(self, values: Float[Tensor, "*b l"]) -> Float[Tensor, "*b e"]:
        return F.linear(values, self.project_out.weight.float(), self.project_out.bias.float())

    # Built on every call: buffers would be rounded when the model is cast, and lost on the meta device.
    def _levels(self, like: Tensor) -> Float[Tensor, " l"]:
        return torch.tensor(self.levels, device=like.device, dtype=torch.float32)

    def _basis(self, like: Tensor) -> Int[Tensor, " l"]:
        return torch.tensor([math.prod(self.levels[:i]) for i in range(len(self.levels))], device=like.device)


class AttentionPooler(Encoder):
    """A group of frames to one vector: the output of a learned token prepended to them."""

    def __init__(self, config: StackConfig, depth: int) -> None:
        super().__init__(config, config.hidden_size, depth)
        self.special_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, groups: Float[Tensor, "b g w e"]) -> Float[Tensor, "b g e"]:
        x = self.embed_tokens(groups).flatten(0, 1)  # (B*G, W, E)
        x = torch.cat([self.special_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        return self.encode(x)[:, 0].unflatten(0, groups.shape[:2])


class AudioTokenizer(nn.Module):
    """25 Hz latents to codes (upstream ``AceStepAudioTokenizer``)."""

    def __init__(self, config: StackConfig, *, channels: int, window: int, depth: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.window = window
        self.audio_acoustic_proj = nn.Linear(channels, config.hidden_size)
        self.attention_pooler = AttentionPooler(config, depth)
        self.quantizer = FSQ(config.hidden_size, levels)

    def forward(
        self, latents: Float[Tensor, "b t c"], silence: Float[Tensor, "1 ts c"]
    ) -> tuple[Float[Tensor, "b g e"], Int[Tensor, "b g"]]:
        """Quantized vectors and codes. The last group is padded with the first frames of ``silence``."""
        missing = -latents.shape[1] % self.window
        filler = silence[:, :missing].expand(len(latents), -1, -1).to(latents.dtype)
        groups = torch.cat([latents, filler], dim=1).unflatten(1, (-1, self.window))
        return self.quantizer(self.attention_pooler(self.audio_acoustic_proj(groups)))

    def code_mask(self, frame_mask: Bool[Tensor, "b t"]) -> Bool[Tensor, "b g"]:
        """True for codes with at least one valid frame."""
        return F.pad(frame_mask, (0, -frame_mask.shape[1] % self.window)).unflatten(1, (-1, self.window)).any(-1)


class AudioDetokenizer(Encoder):
    """Quantized vectors to 25 Hz latents (upstream ``AudioTokenDetokenizer``)."""

    def __init__(self, config: StackConfig, *, channels: int, window: int, depth: int) -> None:
        super().__init__(config, config.hidden_size, depth)
        self.special_tokens = nn.Parameter(torch.zeros(1, window, config.hidden_size))
        self.proj_out = nn.Linear(config.hidden_size, channels)

    def forward(self, quantized: Float[Tensor, "b g e"]) -> Float[Tensor, "b t c"]:
        """W frames for each vector."""
        x = self.embed_tokens(quantized).unsqueeze(2) + self.special_tokens  # (B, G, W, E)
        x = self.proj_out(self.encode(x.flatten(0, 1)))  # (B*G, W, C)
        return x.unflatten(0, quantized.shape[:2]).flatten(1, 2)
