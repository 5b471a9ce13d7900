"""Several adapters in one network, each song with its own: loaded once, then switched on and off, or merged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from acestep.adapters.base import peft_configs
from acestep.adapters.io import set_tensors
from acestep.adapters.read import linear_layers, read_adapter
from acestep.songs import AdapterUse


class AdapterSet:
    """The adapters of ``module`` by path. An adapter that the network had before (a trained one) stays active.

    ``merged`` are part of the weights already; songs must then name the same adapters or none.
    """

    def __init__(self, module: nn.Module, merged: Sequence[AdapterUse] = ()) -> None:
        self.module = module
        self.merged = tuple(merged)
        self.names: dict[str, str] = {}

    @contextmanager
    def using(self, adapters: Sequence[AdapterUse]) -> Iterator[None]:
        """Inside the context exactly ``adapters`` are active, each with its scale."""
        self.prepare(adapters)
        if self.merged or not self.names:
            yield
            return
        scales: dict[str, float] = {}
        for adapter in adapters:
            name = self.names[adapter.path]
            scales[name] = scales.get(name, 0.0) + adapter.scale
        self._activate(scales)
        try:
            yield
        finally:
            self._activate({})

    def prepare(self, adapters: Sequence[AdapterUse]) -> None:
        """Load those of ``adapters`` that are not loaded; raises ``ValueError`` where others were merged."""
        if not self.merged:
            for adapter in adapters:
                self.load(adapter.path)
        elif adapters and tuple(adapters) != self.merged:
            raise ValueError(
                f"adapters={adapters[0].path}: others were merged into the weights, for all songs; give each song the "
                "same, or leave merge out"
            )

    def load(self, path: str) -> None:
        """Read the adapter at ``path`` into the network, inactive, unless it is loaded already."""
        if path in self.names:
            return
        layers = linear_layers(self.module)
        if any(type(layer.weight.data) is not torch.Tensor for layer in layers.values()):
            raise ValueError(
                f"adapters={path}: 8-bit weights take no adapters; use memory=full or memory=offload, or merge=true, "
                "which adds them to the weights before"
            )
        adapter, name = read_adapter(Path(path), layers), f"song{len(self.names)}"
        plain = next(part for key, part in self.module.named_parameters() if key.endswith("scale_shift_table"))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(adapter.config, self.module, name)
        try:
            set_tensors(self.module, adapter.tensors, name, f"adapters={path}")
        except ValueError:
            self._remove(name)
            raise
        for key, parameter in self.module.named_parameters():
            if name in key.split("."):
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(plain.device, plain.dtype)
        self.names[path] = name
        self._activate({})

    def merge(self, adapters: Sequence[AdapterUse]) -> None:
        """Add ``adapters`` to the network's weights: faster than active adapters, and irreversible."""
        with self.using(adapters):
            for layer in self._layers():
                names = [name for name in layer.active_adapters if name in self.names.values()]
                if names:
                    layer.merge(adapter_names=names)
                    layer.merged_adapters.clear()
        for name in self.names.values():
            self._remove(name)
        self.names.clear()
        self.merged = tuple(adapters)

    def _layers(self) -> list[Any]:
        """PEFT's layers; their base class declares few of the methods that all of them have."""
        return [part for part in self.module.modules() if isinstance(part, BaseTunerLayer)]

    def _remove(self, name: str) -> None:
        """Remove an adapter, and PEFT's layers that have no other."""
        for layer in self._layers():
            layer.delete_adapter(name)
        peft_configs(self.module).pop(name)
        for part in list(self.module.modules()):
            for child, layer in list(part.named_children()):
                if isinstance(layer, BaseTunerLayer) and not layer._get_available_adapters():
                    setattr(part, child, layer.get_submodule("base_layer"))

    def _activate(self, scales: dict[str, float]) -> None:
        loaded = set(self.names.values())
        for layer in self._layers():
            present = sorted(layer._get_available_adapters())
            for name in scales.keys() & set(present):
                if hasattr(layer, "scaling"):
                    layer.set_scale(name, scales[name])
                elif scales[name] != 1:
                    raise ValueError(f"adapters: {type(layer).__name__} has no scale to set to {scales[name]:g}; use 1")
            trains = any(parameter.requires_grad for parameter in layer.parameters())
            layer.set_adapter(
                [name for name in present if name not in loaded or name in scales], inference_mode=not trains
            )
