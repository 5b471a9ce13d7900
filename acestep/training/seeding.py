"""Counter-based randomness: what step 1000 draws does not depend on how the run came to step 1000."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*counters: int | str) -> int:
    """A seed that is a function of ``counters`` alone; unequal counters give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, counters)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def derived_generator(*counters: int | str) -> torch.Generator:
    """A CPU generator seeded by ``derived_seed``: the same draws whatever the device of the run."""
    return torch.Generator().manual_seed(derived_seed(*counters))
