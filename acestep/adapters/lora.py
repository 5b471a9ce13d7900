"""LoRA (Hu et al. 2021, arXiv 2106.09685) by PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig

from acestep.adapters.base import BaseFormat, RankedAdapter


@dataclass(frozen=True, kw_only=True)
class LoRA(RankedAdapter):
    """Adds ``scale * B @ A``; ``B`` starts at zero.

    Args:
        dropout: rate on the adapter's input while training.
        rslora: rank-stabilised scale, ``alpha / sqrt(rank)`` (Kalajdzievski 2023, arXiv 2312.03732).
        dora: learns magnitudes separately from directions (Liu et al. 2024, arXiv 2402.09353).
    """

    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"adapter.dropout={self.dropout:g}: need 0 <= dropout < 1")
        if self.dora and self.base is BaseFormat.nf4:
            raise ValueError("adapter.dora=true: needs the norms of whole weights; use another adapter.base than nf4")

    def config(self, targets: Sequence[str]) -> LoraConfig:
        shared = self._shared(targets, alpha="lora_alpha")
        return LoraConfig(**shared, lora_dropout=self.dropout, use_rslora=self.rslora, use_dora=self.dora)
