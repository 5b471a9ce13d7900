"""Several adapters in one network, of which each song uses its own: loaded once, switched on and off, or merged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from acestep.adapters.read import Adapter, linear_layers, read_adapter
from acestep.types import AdapterUse


class Bank:
    """The adapters of ``module`` by their paths. What the network came with (a trained adapter) always stays on.

    ``merged`` are part of the weights already: songs that name those, or none, are made with them.
    """

    def __init__(self, module: nn.Module, merged: Sequence[AdapterUse] = ()) -> None:
        self.module = module
        self.merged = tuple(merged)
        self.names: dict[str, str] = {}

    @contextmanager
    def using(self, adapters: Sequence[AdapterUse]) -> Iterator[None]:
        """Inside, exactly ``adapters`` act, together, each by its scale."""
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
        """Load what is missing of ``adapters``; refused where others were merged."""
        if not self.merged:
            for adapter in adapters:
                self.load(adapter.path)
        elif adapters and tuple(adapters) != self.merged:
            raise ValueError(
                f"adapters={adapters[0].path}: others were merged into the weights, for all songs; give each song the "
                "same, or leave merge out"
            )

    def load(self, path: str) -> None:
        """Read the adapter at ``path`` into the network, switched off, unless that was done before."""
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
            self._fill(adapter, name, path)
        except ValueError:
            self._forget(name)
            raise
        for key, parameter in self.module.named_parameters():
            if name in key.split("."):
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(plain.device, plain.dtype)
        self.names[path] = name
        self._activate({})

    def merge(self, adapters: Sequence[AdapterUse]) -> None:
        """Add ``adapters`` to the network's weights for good: faster than carrying them, and not to be undone."""
        with self.using(adapters):
            for layer in self._layers():
                ours = [name for name in layer.active_adapters if name in self.names.values()]
                if ours:
                    layer.merge(adapter_names=ours)
                    layer.merged_adapters.clear()
        for name in self.names.values():
            self._forget(name)
        self.names.clear()
        self.merged = tuple(adapters)

    def _fill(self, adapter: Adapter, name: str, path: str) -> None:
        wanted = get_peft_model_state_dict(self.module, adapter_name=name)
        for key in sorted(wanted.keys() | adapter.tensors.keys()):
            here, there = wanted.get(key), adapter.tensors.get(key)
            if here is None or there is None or here.shape != there.shape:
                shapes = [None if value is None else list(value.shape) for value in (there, here)]
                raise ValueError(
                    f"adapters={path}: {key} is {shapes[0]} in the adapter and {shapes[1]} in the network; it "
                    "belongs to weights of another size"
                )
        set_peft_model_state_dict(self.module, dict(adapter.tensors), adapter_name=name)

    def _layers(self) -> list[BaseTunerLayer]:
        return [part for part in self.module.modules() if isinstance(part, BaseTunerLayer)]

    def _forget(self, name: str) -> None:
        """Take an adapter out again, and the layers that were put there for it alone."""
        for layer in self._layers():
            layer.delete_adapter(name)
        self.module.peft_config.pop(name)
        for part in list(self.module.modules()):
            for child, layer in list(part.named_children()):
                if isinstance(layer, BaseTunerLayer) and not layer._get_available_adapters():
                    setattr(part, child, layer.base_layer)

    def _activate(self, scales: dict[str, float]) -> None:
        ours = set(self.names.values())
        for layer in self._layers():
            present = sorted(layer._get_available_adapters())
            for name in scales.keys() & set(present):
                if hasattr(layer, "scaling"):
                    layer.set_scale(name, scales[name])
                elif scales[name] != 1:
                    raise ValueError(f"adapters: {type(layer).__name__} has no scale to set to {scales[name]:g}; use 1")
            trains = any(parameter.requires_grad for parameter in layer.parameters())
            layer.set_adapter(
                [name for name in present if name not in ours or name in scales], inference_mode=not trains
            )
