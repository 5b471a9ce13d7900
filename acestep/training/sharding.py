"""FSDP2: parameters, gradients and optimiser states sharded over processes; whole parameters again at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from acestep.models.acestep import AceStep
from acestep.types import Conditions, VelocityField


def shard_dit(network: AceStep, mesh: DeviceMesh) -> None:
    """Shard ``network`` over ``mesh``: each layer by itself, so that one at a time is whole, then the rest."""
    for stack in [module for name, module in network.named_modules() if name.endswith("layers")]:
        for layer in stack.children():
            fully_shard(layer, mesh=mesh)
    # Reshard after an evaluation too: the parameters may have been exchanged for their average during it.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    network.null = partial(_copied_null, network.null)  # type: ignore[method-assign]  # a view dies with its shards
    network.cached_velocity = partial(_uncached_velocity, network)  # type: ignore[method-assign]  # which needs hooks
    for method in ("velocity", "condition", "null"):
        register_fsdp_forward_method(network, method)


def shard_language_model(network: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh, method: str) -> None:
    """Shard a language model over ``mesh``, to be called by its method named ``method``, which returns tensors."""
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(network, method)


@contextmanager
def unsharded(network: nn.Module) -> Iterator[None]:
    """Hold whole parameters of ``network`` in every process, so that each may call it any number of times."""
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def _copied_null(null: Callable[[Conditions], Conditions], conditions: Conditions) -> Conditions:
    """Null conditions that outlive the unsharded parameter that they are a view of."""
    result = null(conditions)
    return replace(result, states=result.states.clone())


def _uncached_velocity(network: AceStep, compiled: bool = False) -> VelocityField:
    """The velocity field for generation through ``network.velocity``: FSDP2's hooks run on whole layers only."""
    if compiled:
        raise ValueError("compile=true: a sharded network generates without torch.compile; leave it out")

    def velocity(x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return network.velocity(x_t.to(conditions.states.dtype), t, conditions)

    return velocity


def is_sharded(network: nn.Module) -> bool:
    """Whether parameters of ``network`` are sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def gather_parameters(network: nn.Module) -> None:
    """Replace shards by whole parameters on the CPU; all processes call it, and no training step may follow."""
    whole: dict[DTensor, nn.Parameter] = {}  # a parameter that several modules share stays shared
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                if parameter not in whole:
                    tensor = parameter.full_tensor().detach().cpu()
                    whole[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                module._parameters[name] = whole[parameter]
