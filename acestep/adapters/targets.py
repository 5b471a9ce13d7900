"""Target layers of an adapter: names and presets of ``adapter.targets``, expanded for a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGET_PRESETS = {
    "attention": PROJECTIONS,
    "self_attention": tuple(f"self_attn.{name}" for name in PROJECTIONS),
    "cross_attention": tuple(f"cross_attn.{name}" for name in PROJECTIONS),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
"""Names for several targets at once."""


def expand_targets(targets: Sequence[str], module: nn.Module) -> list[str]:
    """Last parts of the names of ``module``'s linear layers, presets replaced.

    Raises:
        ValueError: no linear layer has such a name.
    """
    layers = [f".{name}" for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    expanded = [name for target in targets for name in TARGET_PRESETS.get(target, (target,))]
    for target in expanded:
        if not any(layer.endswith(f".{target}") for layer in layers):
            known = sorted({layer.rpartition(".")[2] for layer in layers})
            raise ValueError(
                f"adapter.targets: no linear layer is called {target}; there are {', '.join(known)}, and the presets "
                f"{', '.join(TARGET_PRESETS)}"
            )
    return expanded
