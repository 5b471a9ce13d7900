"""Floating-point operations of a training step, and model FLOPs utilisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from acestep.models.acestep import AceStep

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 operations a second from the manufacturers' data sheets."""


class StepFlops:
    """Operations of the DiT's forward and backward pass: matrix products and attention, without recomputation.

    Per token and matrix of N values: 2N forward, 2N for the gradient of the input, 2N for that of the matrix where it
    trains (Kaplan et al. 2020, section 2.1). Keys and values of cross-attention are counted once per condition token.
    Sliding layers count the whole window; the condition encoder and the autoencoder are not counted.
    """

    def __init__(self, network: AceStep) -> None:
        decoder = network.decoder
        self._config = decoder.config
        self._per_patch = self._per_token = 0  # operations of all matrix products per patch and per condition token
        for name, module in decoder.named_modules():
            matrices = [p for p in module.parameters(recurse=False) if p.ndim == 2]
            if isinstance(module, nn.Embedding) or "time_embed" in name or not matrices:
                continue
            operations = sum((6 if p.requires_grad else 4) * p.numel() for p in matrices)
            if name == "condition_embedder" or "cross_attn.k_proj" in name or "cross_attn.v_proj" in name:
                self._per_token += operations
            else:
                self._per_patch += operations

    def __call__(self, shape: Sequence[int], tokens: int) -> float:
        """Operations for latents of ``shape`` (songs, frames) with ``tokens`` condition tokens each."""
        songs, frames = shape
        stack = self._config.stack
        patches = -(-frames // self._config.patch_size)
        width = stack.num_attention_heads * stack.head_dim
        attended = 0
        for kind in stack.layer_types:
            window = stack.sliding_window if "sliding" in kind else None
            attended += tokens + (patches if window is None else min(patches, 2 * window + 1))
        # Scores and weighted values: 2 products of 2 operations each forward, twice as many backward.
        attention = 12.0 * patches * width * attended
        return songs * (patches * self._per_patch + tokens * self._per_token + attention)


def utilisation(per_second: float, device: torch.device) -> dict[str, float]:
    """TFLOP/s of one device for ``per_second`` operations a second, and their share of its peak where that is known."""
    metrics = {"train/tflops": per_second / 1e12}
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = next((peak for part, peak in PEAKS.items() if part in name), None)
        if peak:
            metrics["train/utilisation"] = per_second / peak
    return metrics
