"""What a training run keeps to go on from, read as a model: a Lightning file, or a folder of shards.

It holds the parameters that train; the run's ``run.json`` says which weights hold the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from acestep.files import read_json
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.distributed import METADATA, DistributedFiles
from acestep.weights.tensors import Renamed, load_plain

SUFFIX = ".ckpt"
RECORD = "run.json"
NETWORK = "network."
STATE = "state_dict"
AVERAGE = ("callbacks", "EMA", "average")
"""Where a run's running average of its parameters is; where there is one, it is the run's result."""
ADAPTER = ".lora_"


def is_training_state(path: Path) -> bool:
    """Whether ``path`` is a Lightning checkpoint file or a distributed checkpoint's folder."""
    return (path.suffix == SUFFIX and path.is_file()) or (path / METADATA).is_file()


def training_base(path: Path) -> str:
    """Name or path of the weights that the run of a checkpoint began with."""
    return str(_config(path)["weights"])


def read_training_state(path: Path, open_base: Callable[[str], Checkpoint]) -> Checkpoint:
    """The model at a checkpoint of its training: trained parameters over those that the run began with."""
    config = _config(path)
    trained = _sharded(path) if path.is_dir() else _whole(path)
    if any(ADAPTER in name for name in trained):
        raise ValueError(f"weights={path}: holds an adapter in training; name its run's folder, which has it whole")
    base = open_base(config["weights"])
    is_new = config.get("network", "pretrained") != "pretrained"
    kept = {} if is_new else {name: name for name in base.network if name not in trained}
    model = {name: value for name, value in config["model"].items() if not name.startswith("_")}
    return replace(
        base,
        name=str(path),
        network_config={**base.network_config, **model},
        network=Renamed(base.network, kept, trained),
    )


def _config(path: Path) -> dict[str, Any]:
    record = path.absolute().parent.parent / RECORD
    if not record.is_file():
        raise ValueError(
            f"weights={path}: holds only what trains, and {record} is missing, which says what was trained; leave "
            "checkpoints in their run's folder"
        )
    config = read_json(record).get("config")
    if not isinstance(config, dict) or "weights" not in config or not isinstance(config.get("model"), dict):
        raise ValueError(f"{record}: says neither config.weights nor config.model; leave it as train.py wrote it")
    return config


def _whole(path: Path) -> dict[str, Tensor]:
    state = load_plain(path, path, mmap=True)
    if not isinstance(state, dict) or STATE not in state:
        raise ValueError(f"weights={path}: has no {STATE}; need a checkpoint that Lightning wrote")
    average = state.get("callbacks", {}).get("EMA", {}).get("average", {})
    return {name.removeprefix(NETWORK): tensor for name, tensor in {**state[STATE], **average}.items()}


def _sharded(path: Path) -> Mapping[str, Tensor]:
    files = DistributedFiles(path)
    places: dict[str, tuple[str, ...]] = {}
    for place in files:
        if place[0] == STATE:
            places.setdefault(place[-1].removeprefix(NETWORK), place)
        elif tuple(place[-1].split("/"))[: len(AVERAGE)] == AVERAGE:
            places[place[-1].rpartition("/")[2].removeprefix(NETWORK)] = place
    return Renamed(files, places, {})
