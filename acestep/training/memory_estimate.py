"""Estimate of a training's memory on each device, before it runs: weights, optimiser, gradients, activations.

A step runs with its adapter, activation checkpointing and mixed precision on fake tensors, which have shapes and no
values, and the bytes of live tensors are counted. Kernels are those of a CPU, which save less for the backward pass
than a GPU's: of a norm the output, where those save its input, and its output too if its weight trains; of a sliding
layer the keys and values, where those copy what every block attends to.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from acestep.adapters import Adapter, BaseFormat
from acestep.memory import CONTEXT_BYTES, GIB, PUBLISHED_PARAMETERS, RESERVE, predicted_bytes
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.dit import Padding
from acestep.training.fit import set_trainable
from acestep.training.optim import OptimizerConfig
from acestep.training.trainer import TrainerConfig
from acestep.types import Conditions

TEXT_ENCODER_BYTES = 4 * PUBLISHED_PARAMETERS["text_encoder"]
"""In float32; it is never sharded."""
CARDS = (12, 16, 24, 32, 48, 80, 141)
"""GiB of common GPUs."""
NF4_STAND_IN = BaseFormat.bfloat16
"""Fake tensors cannot be quantised to nf4; its matrix products compute in this type."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """The shape of a batch: songs, latent frames of each, condition tokens of each."""

    songs: int
    frames: int
    tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on each device.

    Attributes:
        weights: frozen and trained, as stored; under FSDP2 the shard, and the layers that are unsharded at a time.
        adapter: the part of ``weights`` that is the adapter.
        optimizer: optimiser states, and the moving average of the weights where there is one.
        gradients: of the trained parameters.
        activations: other live tensors at the peak of a step.
        saved: activations that the forward pass saves for the backward pass.
        others: text encoder and CUDA context.
    """

    weights: int
    adapter: int
    optimizer: int
    gradients: int
    activations: int
    saved: int
    others: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations + self.others

    @property
    def card(self) -> int | None:
        """GiB of the smallest common GPU that has room for this and a reserve; ``None`` if there is none."""
        return next((size for size in CARDS if self.total * (1 + RESERVE) <= size * GIB), None)


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of storages that operations allocate, as long as they live.

    Args:
        share: of a finished gradient that stays on the device.

    Attributes:
        now: live bytes.
        peak: largest value of ``now``.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share
        self.now = self.peak = 0.0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count ``tensors``, which exist already."""
        for tensor in tensors:
            if is_traceable_wrapper_subclass(tensor):
                self.ignore(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            else:
                self._known.add(tensor.untyped_storage())

    def reduce_gradient(self, parameter: Tensor) -> None:
        """Count a finished gradient as reduced over the devices, each of which keeps its share."""
        assert parameter.grad is not None
        self._add(-(1 - self.share) * parameter.grad.untyped_storage().nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: float) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """The settings that a training's memory depends on.

    Attributes:
        model: sizes of the network.
        trainable: regular expression over parameter names.
        adapter: trained instead, if any.
        optimizer: whose states are counted.
        trainer: precision, activation checkpointing, strategy, devices, accumulation.
        batch: of each device.
        average: whether a moving average of the weights is kept.
    """

    model: AceStepConfig
    trainable: str
    adapter: Adapter | None
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    batch: BatchShape
    average: bool = False

    @property
    def shards(self) -> int:
        """Number of processes over which parameters are sharded."""
        return int(self.trainer.devices) * self.trainer.nodes if self.trainer.strategy == "fsdp2" else 1

    def plan(self, others: int = TEXT_ENCODER_BYTES + CONTEXT_BYTES) -> MemoryPlan:
        """The estimate of a step's memory; ``others`` are bytes beside network and step."""
        network = self._network()
        with FakeTensorMode(allow_non_fake_inputs=True):
            _allocate(network)
            tracker = AllocationTracker(share=1 / self.shards)
            saved = self._step(network, tracker)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        trained_bytes = sum(p.nbytes for p in trained.values())
        gradients = trained_bytes // self.shards
        average = 4 * sum(p.numel() for p in trained.values()) if self.average else 0
        adapter = trained_bytes if self.adapter else 0
        return MemoryPlan(
            weights=self._weights(network, adapter),
            adapter=adapter,
            optimizer=(self.optimizer.state_bytes(trained.items()) + average) // self.shards,
            gradients=gradients,
            activations=max(0, int(tracker.peak) - gradients) + (2 * _layer_bytes(network) if self.shards > 1 else 0),
            saved=saved,
            others=others,
        )

    def _network(self) -> AceStep:
        """The network in training mode with its adapter, on the meta device."""
        adapter = self.adapter
        if adapter is not None and adapter.base is BaseFormat.nf4:
            adapter = replace(adapter, base=NF4_STAND_IN)
        with torch.device("meta"):
            network = AceStep(replace(self.model, padding=Padding.upstream)).train()  # a mask would be read
            set_trainable(network, self.trainable, adapter, 0)
        self.trainer.prepare(network.decoder.layers)
        return network

    def _step(self, network: AceStep, tracker: AllocationTracker) -> int:
        """Forward and backward pass, twice with accumulation; returns the bytes that the first forward pass saved."""
        tracker.ignore([*network.parameters(), *network.buffers()])
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(tracker.reduce_gradient)
        with tracker:
            return self.run_step(network, tracker)

    def run_step(self, network: AceStep, tracker: AllocationTracker | None = None) -> int:
        """Forward and backward pass, on fake or real tensors; returns the bytes that the first forward pass saved."""
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.trainer.precision)
        saved = 0
        for batch in range(2 if self.trainer.accumulate > 1 else 1):
            with torch.autocast("cpu", dtype=mixed) if mixed else nullcontext():
                loss = self._loss(network)
            if tracker and not batch:
                saved = int(tracker.now)
            elif tracker:
                tracker.share = 1.0  # the gradient that this one is added to was counted
            loss.backward()
            del loss
        return saved

    def _loss(self, network: AceStep) -> Tensor:
        batch, width = self.batch, network.config.encoder.hidden_size
        songs, frames = batch.songs, batch.frames
        conditions = Conditions(
            states=torch.empty(songs, batch.tokens, width),
            mask=torch.ones(songs, batch.tokens, dtype=torch.bool),
            context=torch.empty(songs, frames, 2 * network.config.audio_acoustic_hidden_dim),
            frame_mask=torch.ones(songs, frames, dtype=torch.bool),
        )
        x_t = torch.empty(songs, frames, network.config.audio_acoustic_hidden_dim)
        error = network.velocity(x_t, torch.empty(songs), conditions).float() - x_t
        return error.square().sum()

    def _weights(self, network: AceStep, adapter: int) -> int:
        with torch.device("meta"):
            plain = AceStep(self.model)
        base = self.adapter.base if self.adapter else BaseFormat.own
        dtype = torch.bfloat16 if base is BaseFormat.bfloat16 else torch.float32
        quantized = base.value if base in (BaseFormat.int8, BaseFormat.nf4) else None
        stored = predicted_bytes(plain, dtype, quantized) + adapter
        if self.shards == 1:
            return stored
        rest = sum(p.nbytes for name, p in network.named_parameters() if "layers." not in name)
        return stored // self.shards + 2 * _layer_bytes(network) + rest


def _layer_bytes(network: AceStep) -> int:
    return sum(p.nbytes for p in network.decoder.layers[0].parameters())


def _allocate(network: nn.Module) -> None:
    """Replace the meta tensors of ``network`` by CPU tensors, fake ones inside ``FakeTensorMode``."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = _empty_like(parameter.detach())
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty_like(buffer.detach())


def _empty_like(tensor: Any) -> Tensor:
    """An empty CPU tensor of the same shape and type; of a quantised one, with all tensors that it consists of."""
    if not is_traceable_wrapper_subclass(tensor):
        return torch.empty_like(tensor, device="cpu")
    names, context = tensor.__tensor_flatten__()
    parts = {name: _empty_like(getattr(tensor, name)) for name in names}
    cls: Any = type(tensor)
    empty: Tensor = cls.__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())
    return empty
