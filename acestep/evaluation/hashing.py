"""Hashes of strings, tensors and modules."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from acestep.memory import stored_tensors


def digest(*parts: str | bytes) -> str:
    """SHA-256 over the parts, each with its length, as 64 hex digits."""
    total = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()


def digest_tensor(value: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes."""
    value = value.detach().cpu().contiguous()
    return digest(str(value.dtype), str(tuple(value.shape)), value.reshape(-1).view(torch.uint8).numpy().tobytes())


def digest_module(module: nn.Module) -> str:
    """SHA-256 over every parameter and buffer that a checkpoint of ``module`` would hold, by name.

    For a quantized one these are the tensors that it is stored as, so that every storage format has its own hash.
    """
    hashes = {name: map(digest_tensor, stored_tensors(value)) for name, value in module.state_dict().items()}
    return digest(*(f"{name}={','.join(parts)}" for name, parts in sorted(hashes.items())))
