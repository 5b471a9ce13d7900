"""Ways to make a model fit the memory there is, by name. Imports nothing heavy, so that a config is checked at once."""

from __future__ import annotations

from enum import Enum


class Memory(Enum):
    """What is traded for memory.

    ``full`` keeps everything on the device as it is; ``int8`` and ``fp8`` store the DiT's and condition encoder's
    linear layers in 8 bits (torchao, one scale a row; computed in the model's dtype); ``offload`` keeps on the
    device the part at work; ``int8_offload`` does both; ``auto`` takes the first of ``full``, ``offload``,
    ``int8`` and ``int8_offload`` that fits, since 8 bits change the numbers a little and offloading does not.
    """

    auto = "auto"
    full = "full"
    offload = "offload"
    int8 = "int8"
    int8_offload = "int8_offload"
    fp8 = "fp8"

    @property
    def quantised(self) -> str | None:
        """The type that linear weights are stored in."""
        return {"int8": "int8", "int8_offload": "int8", "fp8": "fp8"}.get(self.value)

    @property
    def offloads(self) -> bool:
        """Whether parts wait in the computer's memory."""
        return self in (Memory.offload, Memory.int8_offload)


FIXED = tuple(mode for mode in Memory if mode is not Memory.auto)
"""Those that say themselves what is done."""
AUTO_ORDER = (Memory.full, Memory.offload, Memory.int8, Memory.int8_offload)
"""Of which ``auto`` takes the first that fits."""
