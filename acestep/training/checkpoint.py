"""Training checkpoints: how they are written, found, read for a resume, and exported as weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from acestep.adapters import save_adapter
from acestep.files import atomic
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.model import LanguageModel
from acestep.training.sharding import gather_parameters

META = "meta.pt"
"""Lightning's name for the file of a sharded checkpoint that holds everything but tensors; written last."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file and renames it, so that a killed process leaves no partial checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with atomic(path) as aside:
            torch.save(checkpoint, aside)


class Checkpoints(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which after a resume also removes the checkpoint that the run resumed from.

    Lightning keeps it: a run that is preempted every day would gain one more each day.
    """

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        # Only inside its own folder: the checkpoint of a run that was moved still names the old one.
        assert self.dirpath is not None
        return previous != current and Path(self.dirpath).absolute() in Path(previous).absolute().parents


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes. A checkpoint is a folder of shards, which any number of processes can read.

    Differs from Lightning's: it holds trained parameters only, and is written to a temporary folder that is renamed.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        aside = path.with_name(f".{path.name}.aside")
        if self.global_rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self.barrier()
        tensors = {"state_dict": checkpoint.pop("state_dict")}
        tensors |= {f"optimizer_{n}": state for n, state in enumerate(checkpoint.pop("optimizer_states", []))}
        tensors["rest"], rest = _split_shards(checkpoint)
        dcp.save(tensors, checkpoint_id=aside)
        if self.global_rank == 0:
            torch.save(rest, aside / META)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
        self.barrier()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        if self.global_rank == 0:
            shutil.rmtree(filepath, ignore_errors=True)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load parameters and optimiser states in place; returns the rest of the checkpoint."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if not (path / META).is_file():
            raise ValueError(
                f"run.dir: its checkpoint {path.name} is not of trainer.strategy=fsdp2; resume with its own strategy"
            )
        module = self.lightning_module
        assert module is not None
        rest: dict[str, Any] = torch.load(path / META, map_location="cpu", weights_only=True)
        module.on_load_checkpoint(rest)
        state: dict[str, Any] = get_model_state_dict(module)
        tensors = {"state_dict": {name: state[name] for name in rest["trained"]}}
        # Other sharded tensors, such as an average, belong to a parameter, whose name ends their key.
        tensors["rest"] = {key: torch.empty_like(state[key.split("/")[-1]]) for key in rest["shards"]}
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


def _split_shards(checkpoint: dict[str, Any]) -> tuple[dict[str, DTensor], dict[str, Any]]:
    """The sharded tensors of a nested dict, by their path in it, and the dict without them."""
    shards: dict[str, DTensor] = {}

    def without_shards(node: Any, path: str) -> Any:
        if isinstance(node, DTensor):
            shards[path] = node
            return None
        if isinstance(node, dict):
            return {key: without_shards(value, f"{path}/{key}" if path else str(key)) for key, value in node.items()}
        return node

    rest = without_shards(checkpoint, "")
    return shards, {**rest, "shards": sorted(shards)}


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the run folder ``folder`` that was written last; temporary files are hidden, and skipped."""
    paths = sorted((folder / "checkpoints").glob("[!.]*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return paths[-1] if paths else None


def saved_step(checkpoint: Path) -> int:
    """The number of optimiser steps done when ``checkpoint``, a file or a folder of shards, was written."""
    file = checkpoint / META if checkpoint.is_dir() else checkpoint
    step: int = torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    return step


def export_trained(
    trainer: Trainer, folder: Path, *, model: Pipeline | LanguageModel, adapted: nn.Module, base: str | None
) -> None:
    """Write the trained ``model`` to ``folder``; all processes call it, the first one writes.

    Args:
        trainer: after training; no step may follow.
        folder: where to.
        model: written whole if ``base`` is ``None``.
        adapted: module whose adapter is written otherwise.
        base: weights below the adapter, which its files name.
    """
    gather_parameters(model.network)
    if not trainer.is_global_zero:
        return
    if base is None:
        model.save(folder)
    else:
        save_adapter(adapted, folder, base)
