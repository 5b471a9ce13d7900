"""The diffusion transformer: noisy latents, timestep, condition and context in, velocity out.

Shapes: B songs, T latent frames, S = ceil(T / P) patches of P frames, C latent channels, L condition tokens,
E condition width, H width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acestep.models.attention import Mask, additive_mask, attention_masks
from acestep.models.layers import Attention, RMSNorm, StackConfig, SwiGLU
from acestep.models.rotary import Rotary, rotary_table
from acestep.types import Conditions

FREQUENCIES = 128
TIME_SCALE = 1000.0
PERIOD = 10000.0


class Padding(Enum):
    """How attention treats padded frames and padded condition tokens.

    ``upstream`` attends to them as to all others, so a song's result depends on its batch. ``masked`` masks them, so
    it does not. Without padding both are the same.
    """

    upstream = "upstream"
    masked = "masked"


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of the DiT: its stack of layers, condition width, latent channels and patches."""

    stack: StackConfig
    condition_size: int
    channels: int = 64
    patch_size: int = 2
    padding: Padding = Padding.upstream


class PatchEmbed(nn.Conv1d):
    """Conv1d with kernel = stride, computed as one linear layer, channels last before and after.

    Torch's convolution would return channels first, which costs every layer a copy, and gets wrong gradients from
    torch's compiler for the CPU (2.11).
    """

    def forward(self, x: Float[Tensor, "b t c"]) -> Float[Tensor, "b s h"]:
        patches = x.unflatten(1, (-1, self.stride[0])).transpose(2, 3).flatten(2)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class PatchUnembed(nn.ConvTranspose1d):
    """ConvTranspose1d with kernel = stride, computed as one linear layer, channels last before and after."""

    def forward(self, x: Float[Tensor, "b s h"], output_size: list[int] | None = None) -> Float[Tensor, "b t c"]:
        patch = self.stride[0]
        assert self.bias is not None
        frames = F.linear(x, self.weight.permute(2, 1, 0).flatten(0, 1), self.bias.repeat(patch))
        return frames.unflatten(2, (patch, -1)).flatten(1, 2)


class TimestepEmbedding(nn.Module):
    """Timestep in [0, 1] to its embedding and the six adaptive-norm modulations shared by all layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)
        self.time_proj = nn.Linear(width, 6 * width)

    def forward(
        self, t: Float[Tensor, " b"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b 6 h"]]:
        """Embedding and modulations in ``dtype``; the sinusoids are computed in float32."""
        embedding = self.linear_2(F.silu(self.linear_1(sinusoid(t).to(dtype))))
        return embedding, self.time_proj(F.silu(embedding)).unflatten(1, (6, -1))


class DiTLayer(nn.Module):
    """Self-attention, cross-attention to the condition, SwiGLU; the timestep modulates the first and the last.

    :func:`acestep.models.cached_dit.cached_layer` is the same layer for inference, fused and with cached conditions.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn_norm = RMSNorm(width, eps)
        self.self_attn = Attention(config)
        self.cross_attn_norm = RMSNorm(width, eps)
        self.cross_attn = Attention(config)
        self.mlp_norm = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, config.intermediate_size)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, width))

    def forward(
        self,
        x: Float[Tensor, "b s h"],
        states: Float[Tensor, "b l h"],
        modulation: Float[Tensor, "b 6 h"],
        rotary: Rotary,
        mask: Mask,
        states_mask: Float[Tensor, "b 1 1 l"] | None,
    ) -> Float[Tensor, "b s h"]:
        """One layer.

        Args:
            x: patches.
            states: condition tokens, keys and values of the cross-attention.
            modulation: from the timestep, see :class:`TimestepEmbedding`.
            rotary: rotary table of the patches.
            mask: of the self-attention.
            states_mask: of the cross-attention.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulations(modulation, x.dtype)
        attended = self.self_attn(modulate(self.self_attn_norm(x), shift, scale), rotary=rotary, mask=mask)
        x = torch.addcmul(x, gate, attended)
        x = x + self.cross_attn(self.cross_attn_norm(x), source=states, mask=states_mask)
        return torch.addcmul(x, mlp_gate, self.mlp(modulate(self.mlp_norm(x), mlp_shift, mlp_scale)))

    def modulations(self, shared: Float[Tensor, "b 6 h"], dtype: torch.dtype) -> tuple[Float[Tensor, "b 1 h"], ...]:
        """Shift, scale and gate of the self-attention, then of the MLP: the ``shared`` ones plus this layer's table."""
        return (self.scale_shift_table + shared).to(dtype).unsqueeze(2).unbind(1)


def modulate(
    x: Float[Tensor, "b s h"], shift: Float[Tensor, "#b 1 h"], scale: Float[Tensor, "#b 1 h"]
) -> Float[Tensor, "b s h"]:
    """``shift + x * (1 + scale)``."""
    return torch.addcmul(shift, x, 1 + scale)


class DiT(nn.Module):
    """The velocity field (upstream ``AceStepDiTModel``), under the published parameter names."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        stack, patch = config.stack, config.patch_size
        width = stack.hidden_size
        self.config = config
        # Source latents, chunk mask and noisy latents share a frame's channels. The published names start at index 1.
        self.proj_in = nn.Sequential(nn.Identity(), PatchEmbed(3 * config.channels, width, patch, stride=patch))
        self.time_embed = TimestepEmbedding(width)
        self.time_embed_r = TimestepEmbedding(width)
        self.condition_embedder = nn.Linear(config.condition_size, width)
        self.layers = nn.ModuleList(DiTLayer(stack) for _ in stack.layer_types)
        self.norm_out = RMSNorm(width, stack.rms_norm_eps)
        self.proj_out = nn.Sequential(nn.Identity(), PatchUnembed(width, config.channels, patch, stride=patch))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, width))

    def forward(
        self,
        x_t: Float[Tensor, "b t c"],
        t: Float[Tensor, " b"],
        conditions: Conditions,
        r: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """Velocity at ``x_t`` and time ``t``.

        Args:
            x_t: noisy latents.
            t: timestep of each song, 1 = noise.
            conditions: condition tokens, context latents and masks.
            r: end of a mean-flow step; ``None`` is ``t``, the only value the published models are used with.
        """
        frames, tokens = self.padding_masks(conditions)
        x = self.embed_patches(x_t, conditions.context, frames)  # (B, S, H)
        states = self.condition_embedder(conditions.states)  # (B, L, H)
        embedding, modulation = self.embed_time(t, torch.zeros_like(t) if r is None else t - r, x.dtype)
        rotary, masks = self.rotary_and_masks(x, frames)
        states_mask = None if tokens is None else additive_mask(tokens[:, None, None, :], x)
        for layer, kind in zip(self.layers, self.config.stack.layer_types, strict=True):
            x = layer(x, states, modulation, rotary, masks[kind], states_mask)
        return self.output(x, embedding)[:, : x_t.shape[1]]

    def embed_patches(
        self, x_t: Float[Tensor, "b t c"], context: Float[Tensor, "b t c2"], frames: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b s h"]:
        """Context and noisy latents to patch embeddings; masked ``frames`` are zero."""
        x = torch.cat([context, x_t], dim=-1)  # (B, T, 3C)
        if frames is not None:
            x = x * frames.unsqueeze(-1)
        return self.proj_in(F.pad(x, (0, 0, 0, -x.shape[1] % self.config.patch_size)))

    def embed_time(
        self, t: Float[Tensor, " b"], span: Float[Tensor, " b"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b 6 h"]]:
        """Embedding and modulations of a timestep and of the ``span`` of a mean-flow step."""
        embedding, modulation = self.time_embed(t, dtype)
        embedding_r, modulation_r = self.time_embed_r(span, dtype)
        return embedding + embedding_r, modulation + modulation_r

    def rotary_and_masks(
        self, x: Float[Tensor, "b s h"], frames: Bool[Tensor, "b t"] | None
    ) -> tuple[Rotary, dict[str, Mask]]:
        """Rotary table and self-attention masks by layer type for patches of ``x``'s shape."""
        stack = self.config.stack
        patches = None if frames is None else frames[:, :: self.config.patch_size]  # (B, S)
        rotary = rotary_table(x.shape[1], stack.head_dim, stack.rope_theta, x)
        return rotary, attention_masks(x.shape[1], stack.sliding_window, patches, x)

    def output(self, x: Float[Tensor, "b s h"], embedding: Float[Tensor, "#b h"]) -> Float[Tensor, "b p c"]:
        """Final norm and projection: patches to the velocity of their frames."""
        shift, scale = (self.scale_shift_table + embedding.unsqueeze(1)).to(x.dtype).chunk(2, dim=1)  # (B, 1, H) each
        return self.proj_out(modulate(self.norm_out(x), shift, scale))

    def padding_masks(self, conditions: Conditions) -> tuple[Bool[Tensor, "b t"] | None, Bool[Tensor, "b l"] | None]:
        """The frame and token masks to apply; ``None`` where nothing is masked."""
        if self.config.padding is Padding.upstream:
            return None, None
        frames, tokens = conditions.frame_mask, conditions.mask
        return None if frames.all() else frames, None if tokens.all() else tokens


def sinusoid(t: Float[Tensor, " b"]) -> Float[Tensor, "b 256"]:
    """Cosines, then sines, of ``1000 t`` at 128 frequencies from 1 down to almost 1 / 10000.

    Scaled in ``t``'s dtype, as upstream does: bfloat16 timesteps are visibly rounded.
    """
    exponents = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32) / FREQUENCIES
    angles = (TIME_SCALE * t).float()[:, None] * torch.exp(-math.log(PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
