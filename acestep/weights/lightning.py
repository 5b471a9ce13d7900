"""Training checkpoints as models: a Lightning ``.ckpt`` file, or a folder of torch distributed checkpoint shards.

They hold the parameters that are trained; the run's ``run.json`` names the weights with the other parameters.
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
from acestep.weights.tensors import RenamedTensors, load_plain

NETWORK = "network."
STATE = "state_dict"
EMA = ("callbacks", "EMA", "average")
"""Path of the EMA of the parameters; if there is one, it is the result of the run."""


def is_training_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a Lightning checkpoint file or a folder of a distributed checkpoint."""
    return (path.suffix == ".ckpt" and path.is_file()) or (path / METADATA).is_file()


def base_weights(path: Path) -> str:
    """Name or path of the weights that the run of a training checkpoint started from."""
    return str(_run_config(path)["weights"])


def read_training_checkpoint(path: Path, open_base: Callable[[str], Checkpoint]) -> Checkpoint:
    """The model of a training checkpoint: trained parameters, and the others from the weights the run started from.

    Raises:
        ValueError: the files are broken, hold an adapter, or are not in the folder of their run.
    """
    config = _run_config(path)
    trained = _read_shards(path) if path.is_dir() else _read_file(path)
    if any(".lora_" in name for name in trained):
        raise ValueError(f"weights={path}: holds an adapter in training; name its run's folder")
    base = open_base(config["weights"])
    is_new = config.get("network", "pretrained") != "pretrained"
    frozen = {} if is_new else {name: name for name in base.network if name not in trained}
    model = {name: value for name, value in config["model"].items() if not name.startswith("_")}
    return replace(
        base,
        name=str(path),
        network_config={**base.network_config, **model},
        network=RenamedTensors(base.network, frozen, trained),
    )


def _run_config(path: Path) -> dict[str, Any]:
    record = path.absolute().parent.parent / "run.json"
    if not record.is_file():
        raise ValueError(
            f"weights={path}: holds only the trained parameters, and {record}, which names the other weights, is "
            "missing; leave checkpoints in their run's folder"
        )
    config = read_json(record).get("config")
    if not isinstance(config, dict) or "weights" not in config or not isinstance(config.get("model"), dict):
        raise ValueError(f"{record}: has no config.weights or config.model; leave it as train.py wrote it")
    return config


def _read_file(path: Path) -> dict[str, Tensor]:
    state = load_plain(path, path, mmap=True)
    if not isinstance(state, dict) or STATE not in state:
        raise ValueError(f"weights={path}: has no {STATE}; need a checkpoint that Lightning wrote")
    average = state.get(EMA[0], {}).get(EMA[1], {}).get(EMA[2], {})
    return {name.removeprefix(NETWORK): tensor for name, tensor in {**state[STATE], **average}.items()}


def _read_shards(path: Path) -> Mapping[str, Tensor]:
    files = DistributedFiles(path)
    keys: dict[str, tuple[str, ...]] = {}
    for key in files:
        if key[0] == STATE:
            keys.setdefault(key[-1].removeprefix(NETWORK), key)
        elif tuple(key[-1].split("/"))[: len(EMA)] == EMA:
            keys[key[-1].rpartition("/")[2].removeprefix(NETWORK)] = key
    return RenamedTensors(files, keys)
