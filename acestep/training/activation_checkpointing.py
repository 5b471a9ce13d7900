"""Activation checkpointing of layers. Changes no parameter's name and no result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


class Recompute(Enum):
    """What the backward pass recomputes.

    ``none``: nothing, all activations are kept. ``full``: each layer, of which only the input is kept. ``selective``:
    all but the results of matrix products and attention, which are expensive.
    """

    none = "none"
    full = "full"
    selective = "selective"


SAVED_OPERATIONS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}
"""Operations whose results ``selective`` keeps."""


def checkpoint_activations(layers: Iterable[nn.Module], recompute: Recompute) -> None:
    """Wrap the forward method of each of ``layers``, in place."""
    if recompute is Recompute.none:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute is Recompute.selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for layer in layers:
        layer.forward = _checkpointed(layer.forward, options)


def _checkpointed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def checkpointed(*args: Any) -> Any:  # a function, since torch does not compile functools.partial
        return checkpoint(forward, *args, **options)

    return checkpointed


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in SAVED_OPERATIONS else CheckpointPolicy.PREFER_RECOMPUTE
