"""What a training takes of each device's memory, before it runs: weights, optimiser, gradients, activations.

A step runs as it will, with its adapter, recomputation and mixed precision, on tensors that have shapes and no numbers,
and whatever is alive is counted. Kernels are a CPU's, which keep less for backward than a GPU's: of a norm the output,
where those keep its input, and its output too if its weight trains; of a sliding layer the keys and values, where those
copy what every block sees.
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

from acestep.adapters import Adapter, Base
from acestep.memory import CONTEXT_BYTES, GIB, PUBLISHED_PARAMETERS, RESERVE, predicted_bytes
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.dit import Padding
from acestep.training.fit import select_trained
from acestep.training.optim import Optimizer
from acestep.training.trainer import TrainerConfig
from acestep.types import Conditions

TEXT_ENCODER_BYTES = 4 * PUBLISHED_PARAMETERS["text_encoder"]
"""In float32: no part of the network, and whole on every device."""
CARDS = (12, 16, 24, 32, 48, 80, 141)
NF4_STAND_IN = Base.bfloat16
"""4 bits cannot be made without numbers; they compute in this, matrix by matrix."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The shape of a batch: songs, latent frames of each, condition tokens of each."""

    songs: int
    frames: int
    tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on each device.

    Attributes:
        weights: frozen and trained, as stored; of sharded ones the share, and the layers that are whole at a time.
        adapter: of ``weights``, the adapter.
        optimizer: states, and the moving average where there is one.
        gradients: of what trains.
        activations: what else is alive at a step's worst moment.
        kept: of that, what forward leaves for backward.
        others: text encoder and CUDA's own.
    """

    weights: int
    adapter: int
    optimizer: int
    gradients: int
    activations: int
    kept: int
    others: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.optimizer + self.gradients + self.activations + self.others

    @property
    def card(self) -> int | None:
        """GiB of the smallest common card that this fits on, with a reserve; ``None`` where it fits on none."""
        return next((size for size in CARDS if self.total * (1 + RESERVE) <= size * GIB), None)


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make, for as long as they live.

    Args:
        share: of a finished gradient that stays on the device.
    """

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share
        self.now = self.peak = 0.0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Take ``tensors`` for there already."""
        for tensor in tensors:
            if is_traceable_wrapper_subclass(tensor):
                self.ignore(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
            else:
                self._known.add(tensor.untyped_storage())

    def settle(self, parameter: Tensor) -> None:
        """The gradient of ``parameter`` is summed: the other devices take their shares."""
        assert parameter.grad is not None
        self._add(-(1 - self.share) * parameter.grad.untyped_storage().nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return made

    def _add(self, size: float) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What of a configuration decides its memory.

    Attributes:
        model: sizes of the network.
        trainable: regular expression over parameter names.
        adapter: trained instead, if any.
        optimizer: whose states are counted.
        trainer: precision, recomputation, strategy, devices, accumulation.
        batch: of each device.
        average: whether a moving average is kept.
    """

    model: AceStepConfig
    trainable: str
    adapter: Adapter | None
    optimizer: Optimizer
    trainer: TrainerConfig
    batch: Batch
    average: bool = False

    @property
    def shards(self) -> int:
        """Processes that parameters are spread over."""
        return int(self.trainer.devices) * self.trainer.nodes if self.trainer.strategy == "fsdp2" else 1

    def plan(self, others: int = TEXT_ENCODER_BYTES + CONTEXT_BYTES) -> Plan:
        """What a step takes; ``others`` are bytes beside network and step."""
        network = self._network()
        with FakeTensorMode(allow_non_fake_inputs=True):
            _allocate(network)
            alive = Alive(share=1 / self.shards)
            kept = self._step(network, alive)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        values = sum(p.numel() for p in trained.values())
        gradients = sum(p.nbytes for p in trained.values()) // self.shards
        average = 4 * values if self.average else 0
        adapter = sum(p.nbytes for p in trained.values()) if self.adapter else 0
        return Plan(
            weights=self._weights(network, adapter),
            adapter=adapter,
            optimizer=(self.optimizer.state_bytes(trained.items()) + average) // self.shards,
            gradients=gradients,
            activations=max(0, int(alive.peak) - gradients) + (2 * self._layer(network) if self.shards > 1 else 0),
            kept=kept,
            others=others,
        )

    def _network(self) -> AceStep:
        """The network as it trains, on the meta device."""
        adapter = self.adapter
        if adapter is not None and adapter.base is Base.nf4:
            adapter = replace(adapter, base=NF4_STAND_IN)
        with torch.device("meta"):
            network = AceStep(replace(self.model, padding=Padding.upstream)).train()  # which looks at no number either
            select_trained(network, self.trainable, adapter, 0)
        self.trainer.prepare(network.decoder.layers)
        return network

    def _step(self, network: AceStep, alive: Alive) -> int:
        """Forward and backward, twice where gradients accumulate; returns what the first forward left."""
        alive.ignore([*network.parameters(), *network.buffers()])
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(alive.settle)
        with alive:
            return self.pass_through(network, alive)

    def pass_through(self, network: AceStep, alive: Alive | None = None) -> int:
        """Forward and backward as a step has them, on any numbers; returns what ``alive`` counts in between."""
        mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.trainer.precision)
        kept = 0
        for turn in range(2 if self.trainer.accumulate > 1 else 1):
            with torch.autocast("cpu", dtype=mixed) if mixed else nullcontext():
                loss = self._loss(network)
            kept = max(kept, int(alive.now)) if alive and not turn else kept
            if alive and turn:
                alive.share = 1.0  # what is added to a gradient that is there was counted
            loss.backward()
            del loss
        return kept

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
        base = self.adapter.base if self.adapter else Base.own
        dtype = torch.bfloat16 if base is Base.bfloat16 else torch.float32
        stored = predicted_bytes(plain, dtype, base.value if base in (Base.int8, Base.nf4) else None) + adapter
        if self.shards == 1:
            return stored
        rest = sum(p.nbytes for name, p in network.named_parameters() if "layers." not in name)
        return stored // self.shards + 2 * self._layer(network) + rest

    def _layer(self, network: AceStep) -> int:
        return sum(p.nbytes for p in network.decoder.layers[0].parameters())


def _allocate(network: nn.Module) -> None:
    """Give the tensors of ``network`` memory on the CPU, or what passes for it."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                made = _like(value.detach())
                is_parameter = held is module._parameters
                held[name] = nn.Parameter(made, requires_grad=value.requires_grad) if is_parameter else made


def _like(tensor: Any) -> Tensor:
    """An empty tensor of the same form; of a quantised one, with all that it is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        return torch.empty_like(tensor, device="cpu")
    names, form = tensor.__tensor_flatten__()
    parts = {name: _like(getattr(tensor, name)) for name in names}
    made: Tensor = type(tensor).__tensor_unflatten__(parts, form, tensor.shape, tensor.stride())
    return made
