"""Adapters beside LoRA, as PEFT implements them: Kronecker and Hadamard products, and rotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoHaConfig, LoKrConfig, OFTConfig

from acestep.adapters.base import Base
from acestep.adapters.lora import Adapter, Ranked


@dataclass(frozen=True, kw_only=True)
class LoKr(Ranked):
    """Adds a Kronecker product of two small matrices (Yeh et al. 2023, arXiv 2309.14859, section 3.3).

    Args:
        factor: size of the first matrix; -1 makes both about equal.
        decompose_both: whether the first matrix is a low-rank product too.
    """

    rank: int = 16
    alpha: float = 16.0
    factor: int = -1
    decompose_both: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 1 and self.factor != -1:
            raise ValueError(f"adapter.factor={self.factor}: need at least 1, or -1 for about equal sizes")

    def config(self, targets: Sequence[str]) -> LoKrConfig:
        """As PEFT names it."""
        return LoKrConfig(
            r=self.rank,
            alpha=self.alpha,
            target_modules=list(targets),
            decompose_factor=self.factor,
            decompose_both=self.decompose_both,
            **self._patterns(),
        )


@dataclass(frozen=True, kw_only=True)
class LoHa(Ranked):
    """Adds an entrywise product of two low-rank products, of up to its squared rank (FedPara, arXiv 2108.06098)."""

    rank: int = 16
    alpha: float = 16.0

    def config(self, targets: Sequence[str]) -> LoHaConfig:
        """As PEFT names it."""
        return LoHaConfig(r=self.rank, alpha=self.alpha, target_modules=list(targets), **self._patterns())


@dataclass(frozen=True, kw_only=True)
class OFT(Adapter):
    """Rotates the layers' inputs, block by block (Qiu et al. 2023, arXiv 2306.07280); norms and angles stay.

    Args:
        block: inputs that are rotated together; must divide every target's input width.
    """

    block: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 2:
            raise ValueError(f"adapter.block={self.block}: need at least 2; a rotation takes two axes")
        if self.base is Base.int8:
            raise ValueError("adapter.base=int8: PEFT puts no OFT on it; use nf4 or bfloat16")

    def config(self, targets: Sequence[str]) -> OFTConfig:
        """As PEFT names it."""
        return OFTConfig(r=0, oft_block_size=self.block, target_modules=list(targets), use_cayley_neumann=False)
