"""Counts the floating-point operations and bytes of matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Work(TorchDispatchMode):
    """Context that counts the matrix products, convolutions and attentions inside, forward and backward.

    Attributes:
        flops: floating-point operations.
        bytes: read and written, without caching between operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)

    @property
    def flops(self) -> int:
        return self._counter.get_total_flops()

    def __enter__(self) -> Self:
        super().__enter__()
        self._counter.__enter__()  # inside, so that operations which it decomposes arrive here decomposed
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``function``, and count its bytes if its operations are counted."""
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in self._counter.flop_registry:
            tensors = {id(x): x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
            self.bytes += sum(x.nbytes for x in tensors.values())
        return result


def _attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * 2 * prod(query) * key[-2]  # scores, and values by them


def _attention_backward(_: Any, query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
    return 5 * 2 * prod(query) * key[-2]  # scores again, and the gradients of scores, queries, keys and values


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The fused CPU attention, missing in torch's flop counter, by shapes (songs, heads, length, width)."""
