"""FSDP2: parameters, gradients and optimiser states spread over processes, and back in one piece at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from acestep.models.acestep import AceStep
from acestep.types import Conditions, VelocityField

META = "meta.pt"
"""Lightning's name for what a sharded checkpoint holds beside tensors; written last."""


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes. A checkpoint is a folder of shards, which any number of processes reads.

    Differs from Lightning's: only what trains is in it, and it is written aside and then renamed.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write ``filepath``, a folder, so that a kill leaves the old one, the new one or none."""
        path = Path(self.broadcast(str(filepath)))
        aside = path.with_name(f".{path.name}.aside")
        if self.global_rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self.barrier()
        tensors = {"state_dict": checkpoint.pop("state_dict")}
        tensors |= {f"optimizer_{n}": state for n, state in enumerate(checkpoint.pop("optimizer_states", []))}
        tensors["rest"], rest = _shards_apart(checkpoint)
        dcp.save(tensors, checkpoint_id=aside)
        if self.global_rank == 0:
            torch.save(rest, aside / META)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
        self.barrier()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """Delete a folder of shards."""
        if self.global_rank == 0:
            shutil.rmtree(filepath, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what trains and its optimiser's states into place; returns the rest."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if not (path / META).is_file():
            raise ValueError(f"run.dir: its checkpoint {path.name} is not of trainer.strategy=fsdp2; go on as it began")
        module = self.lightning_module
        assert module is not None
        rest: dict[str, Any] = torch.load(path / META, map_location="cpu", weights_only=True)
        module.on_load_checkpoint(rest)
        held = get_model_state_dict(module)
        tensors = {"state_dict": {name: held[name] for name in rest["trained"]}}
        # What else is sharded belongs to a parameter, whose name ends its key.
        tensors["rest"] = {key: torch.empty_like(held[key.split("/")[-1]]) for key in rest["shards"]}
        dcp.load(tensors, checkpoint_id=path)
        module.load_state_dict(tensors["state_dict"], strict=False)
        for key, value in tensors["rest"].items():
            *parents, last = key.split("/")
            node = rest
            for parent in parents:
                node = node[parent]
            node[last] = value
        for number, optimizer in enumerate(self.optimizers):
            states = {f"optimizer_{number}": get_optimizer_state_dict(module, optimizer)}
            dcp.load(states, checkpoint_id=path)
            set_optimizer_state_dict(module, optimizer, optim_state_dict=states[f"optimizer_{number}"])
        return rest


def _shards_apart(checkpoint: dict[str, Any]) -> tuple[dict[str, DTensor], dict[str, Any]]:
    """The sharded tensors in a tree of mappings, by their path in it, and the tree without them."""
    shards: dict[str, DTensor] = {}

    def pulled(node: Any, path: str) -> Any:
        if isinstance(node, DTensor):
            shards[path] = node
            return None
        if isinstance(node, dict):
            return {key: pulled(value, f"{path}/{key}" if path else str(key)) for key, value in node.items()}
        return node

    rest = pulled(checkpoint, "")
    return shards, {**rest, "shards": sorted(shards)}


def shard(network: AceStep, mesh: DeviceMesh) -> None:
    """Spread ``network`` over ``mesh``: its layers one by one, so that only one is whole at a time, then the rest."""
    for stack in [module for name, module in network.named_modules() if name.endswith("layers")]:
        for layer in stack.children():
            fully_shard(layer, mesh=mesh)
    # Parameters must not stay whole after an evaluation: an average may have stood in their place.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    network.null = partial(_owned, network.null)
    network.generation = partial(_whole_layers, network)
    for method in ("velocity", "condition", "null"):
        register_fsdp_forward_method(network, method)


def shard_language(network: nn.Module, layers: nn.ModuleList, mesh: DeviceMesh, method: str) -> None:
    """Spread a language model over ``mesh``, to be called by ``method``: one that returns tensors."""
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(network, method)


@contextmanager
def whole(network: nn.Module) -> Iterator[None]:
    """Hold all of ``network`` in every process, so that each may call it as often as it likes."""
    spread = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in spread:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in spread:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def _owned(null: Callable[[Conditions], Conditions], conditions: Conditions) -> Conditions:
    """Null conditions that outlive the whole parameter that they are a view of."""
    made = null(conditions)
    return replace(made, states=made.states.clone())


def _whole_layers(network: AceStep, compiled: bool = False) -> VelocityField:
    """The velocity field of a generation by layers that are called whole: only then do they have their weights."""
    if compiled:
        raise ValueError("compile=true: a network that is spread over processes makes songs without; leave it out")

    def velocity(x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        return network.velocity(x_t.to(conditions.states.dtype), t, conditions)

    return velocity


def is_sharded(network: nn.Module) -> bool:
    """Whether ``network`` is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def gather(network: nn.Module) -> None:
    """Put whole parameters, on the CPU, in place of the shards; all processes must call it. Training ends here."""
    wholes: dict[DTensor, nn.Parameter] = {}  # what several modules share stays shared
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, DTensor):
                if parameter not in wholes:
                    tensor = parameter.detach().full_tensor().cpu()
                    wholes[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
                module._parameters[name] = wholes[parameter]
