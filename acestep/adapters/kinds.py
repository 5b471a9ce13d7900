"""Adapters other than LoRA by PEFT: Kronecker products, Hadamard products and orthogonal rotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoHaConfig, LoKrConfig, OFTConfig

from acestep.adapters.base import Adapter, BaseFormat, RankedAdapter


@dataclass(frozen=True, kw_only=True)
class LoKr(RankedAdapter):
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
        shared = self._shared(targets)
        return LoKrConfig(**shared, decompose_factor=self.factor, decompose_both=self.decompose_both)


@dataclass(frozen=True, kw_only=True)
class LoHa(RankedAdapter):
    """Adds a Hadamard product of two low-rank products; rank up to ``rank**2`` (FedPara, arXiv 2108.06098)."""

    rank: int = 16
    alpha: float = 16.0

    def config(self, targets: Sequence[str]) -> LoHaConfig:
        return LoHaConfig(**self._shared(targets))


@dataclass(frozen=True, kw_only=True)
class OFT(Adapter):
    """Orthogonal rotation of the layers' inputs in blocks (Qiu et al. 2023, arXiv 2306.07280).

    Args:
        block: width of a rotation; must divide every target's input width.
    """

    block: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block < 2:
            raise ValueError(f"adapter.block={self.block}: need at least 2; a rotation takes two axes")
        if self.base is BaseFormat.int8:
            raise ValueError("adapter.base=int8: PEFT has no OFT for it; use nf4 or bfloat16")

    def config(self, targets: Sequence[str]) -> OFTConfig:
        return OFTConfig(r=0, oft_block_size=self.block, target_modules=list(targets), use_cayley_neumann=False)
