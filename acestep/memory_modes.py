"""The memory modes by name.

Apart from ``acestep.memory``, and without torch: the command lines check ``memory=...`` before they import torch, which
takes seconds.
"""

from __future__ import annotations

from enum import Enum


class MemoryMode(Enum):
    """How a model is fitted into memory.

    ``full`` keeps all weights on the device; ``int8`` and ``fp8`` store the DiT's and condition encoder's linear
    layers in 8 bits (torchao, one scale per row; computed in the model's dtype); ``offload`` keeps only the current
    stage on the device; ``int8_offload`` does both; ``auto`` selects the first of ``full``, ``offload``, ``int8`` and
    ``int8_offload`` that fits, since 8 bits change the results slightly and offloading does not.
    """

    auto = "auto"
    full = "full"
    offload = "offload"
    int8 = "int8"
    int8_offload = "int8_offload"
    fp8 = "fp8"

    @property
    def quantized(self) -> str | None:
        """Storage type of linear weights; ``None`` if they are not quantized."""
        return {"int8": "int8", "int8_offload": "int8", "fp8": "fp8"}.get(self.value)

    @property
    def offloads(self) -> bool:
        """Whether parts are moved to CPU memory while they are not used."""
        return self in (MemoryMode.offload, MemoryMode.int8_offload)


MEMORY_MODES = tuple(mode for mode in MemoryMode if mode is not MemoryMode.auto)
"""All modes but ``auto``."""
AUTO_MODES = (MemoryMode.full, MemoryMode.offload, MemoryMode.int8, MemoryMode.int8_offload)
"""Candidates of ``auto``, in order of preference."""
