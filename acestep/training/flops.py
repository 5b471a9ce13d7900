"""How many floating-point operations a training step needs, and which share of what the device could do that is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from acestep.models.acestep import AceStep

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 operations a second by the makers' data sheets."""


class StepCost:
    """Operations of forward and backward pass of a network's DiT: matrix products and attention, nothing recomputed.

    Per token and matrix of N values: 2N forward, 2N for the gradient of the input, 2N for that of the matrix where it
    trains (Kaplan et al. 2020, section 2.1). Keys and values of cross-attention are counted once per condition token.
    Sliding layers count the whole window, the condition encoder and the autoencoder nothing.
    """

    def __init__(self, network: AceStep) -> None:
        decoder = network.decoder
        self._config = decoder.config
        self._patches = self._states = 0  # operations of all matrix products per patch and per condition token
        for name, module in decoder.named_modules():
            matrices = [p for p in module.parameters(recurse=False) if p.ndim == 2]
            if isinstance(module, nn.Embedding) or "time_embed" in name or not matrices:
                continue
            operations = sum((6 if p.requires_grad else 4) * p.numel() for p in matrices)
            reads_condition = name == "condition_embedder" or (
                "cross_attn.k_proj" in name or "cross_attn.v_proj" in name
            )
            if reads_condition:
                self._states += operations
            else:
                self._patches += operations

    def __call__(self, shape: Sequence[int], tokens: int) -> float:
        """Operations for latents of ``shape`` (songs, frames) with ``tokens`` condition tokens each."""
        songs, frames = shape
        stack = self._config.stack
        patches = -(-frames // self._config.patch_size)
        width = stack.num_attention_heads * stack.head_dim
        attended = 0
        for kind in stack.layer_types:
            is_sliding = "sliding" in kind and stack.sliding_window is not None
            attended += tokens + (min(patches, 2 * stack.sliding_window + 1) if is_sliding else patches)
        # Scores and weighted values: 2 products of 2 operations each forward, twice as many backward.
        attention = 12.0 * patches * width * attended
        return songs * (patches * self._patches + tokens * self._states + attention)


def utilisation(per_second: float, device: torch.device) -> dict[str, float]:
    """Operations a second of one device, and their share of its peak where that is known."""
    found = {"train/tflops": per_second / 1e12}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((peak for part, peak in PEAKS.items() if part in name), None)
        if peak:
            found["train/utilisation"] = per_second / peak
    return found
