"""Training checkpoints are read as models, from a Lightning file or shards; no pickled code is executed."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tiny import NETWORK
from torch import Tensor

from acestep.models.acestep import AceStepConfig
from acestep.pipeline.build import build_network, weights_fingerprint
from acestep.weights.open import open_checkpoint

TRAINED = "decoder.layers.1.mlp.up_proj.weight"
AVERAGED = "decoder.layers.0.mlp.up_proj.weight"
SHARDER = """
import os
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
tensors = torch.load(sys.argv[1], weights_only=True)
sharded = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in tensors.items()}
dcp.save({"state_dict": sharded}, checkpoint_id=sys.argv[2])
dist.barrier()
os._exit(0)  # gloo's threads sometimes abort a process at a normal exit
"""


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A run folder as training writes it, without checkpoints."""
    model = asdict(AceStepConfig.from_dict(NETWORK)) | {"padding": "masked", "_target_": "acestep.models.AceStepConfig"}
    record = {"config": {"weights": str(tiny), "network": "pretrained", "model": model}}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return tmp_path / "run"


def trained(tiny: Path, *names: str) -> dict[str, Tensor]:
    network, generator = open_checkpoint(tiny).network, torch.Generator().manual_seed(0)
    return {name: torch.randn(network[name].shape, generator=generator) for name in names}


def network(path: Path) -> dict[str, Tensor]:
    return build_network(open_checkpoint(path), "cpu", torch.float32).state_dict()


def assert_trained(path: Path, tiny: Path, expected: dict[str, Tensor]) -> None:
    found, before = network(path), network(tiny)
    for name, tensor in (before | expected).items():
        assert torch.equal(found[name], tensor), name


def test_a_lightning_file(run: Path, tiny: Path) -> None:
    tensors = trained(tiny, TRAINED, AVERAGED)
    state = {f"network.{name}": tensor for name, tensor in tensors.items()}
    average = {f"network.{AVERAGED}": 2 * tensors[AVERAGED]}
    path = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": state, "global_step": 3, "callbacks": {"EMA": {"average": average, "step": 3}}}, path)
    assert_trained(path, tiny, {TRAINED: tensors[TRAINED], AVERAGED: 2 * tensors[AVERAGED]})
    assert weights_fingerprint(path) not in (weights_fingerprint(tiny), weights_fingerprint(path.parent))


def test_shards_of_one_process(run: Path, tiny: Path) -> None:
    tensors = trained(tiny, TRAINED, AVERAGED)
    path = run / "checkpoints" / "last.ckpt"
    state = {f"network.{name}": tensor for name, tensor in tensors.items()}
    rest = {f"callbacks/EMA/average/network.{AVERAGED}": 2 * tensors[AVERAGED].bfloat16()}
    dcp.save({"state_dict": state, "optimizer_0": {"step": torch.tensor(3.0)}, "rest": rest}, checkpoint_id=path)
    assert_trained(path, tiny, {TRAINED: tensors[TRAINED], AVERAGED: 2 * tensors[AVERAGED].bfloat16().float()})


@pytest.mark.slow
def test_shards_of_two_processes(run: Path, tiny: Path, tmp_path: Path) -> None:
    tensors = trained(tiny, TRAINED, AVERAGED, "null_condition_emb")
    path = run / "checkpoints" / "last.ckpt"
    torch.save({f"network.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "whole.pt")
    (tmp_path / "sharder.py").write_text(SHARDER)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "sharder.py"), str(tmp_path / "whole.pt"), str(path)]
    processes = [subprocess.Popen(command, env=common | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list(path.glob("*.distcp"))) == 2
    assert_trained(path, tiny, tensors)


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_pickled_code_is_not_executed(run: Path, tiny: Path, tmp_path: Path) -> None:
    trace, path = tmp_path / "ran", run / "checkpoints" / "bomb.ckpt"
    torch.save({"state_dict": trained(tiny, TRAINED), "more": _Bomb(trace)}, path)
    with pytest.raises(ValueError, match=r"bomb\.ckpt: not a plain tensor file, so it was not opened"):
        open_checkpoint(path)
    shards = run / "checkpoints" / "shards.ckpt"
    dcp.save({"state_dict": trained(tiny, TRAINED)}, checkpoint_id=shards)
    whole = (shards / ".metadata").read_bytes()
    for metadata in (pickle.dumps(_Bomb(trace)), pickle.dumps(os.system), b"", b"no pickle", whole[:-40]):
        (shards / ".metadata").write_bytes(metadata)
        with pytest.raises(ValueError, match=r"shards\.ckpt/\.metadata: not the metadata of a distributed checkpoint"):
            open_checkpoint(shards)
    (shards / ".metadata").write_bytes(whole)
    torch.save(_Bomb(trace), next(shards.glob("*.distcp")))
    with pytest.raises(ValueError, match=r"0_0\.distcp: not a plain tensor file"):
        network(shards)
    next(shards.glob("*.distcp")).unlink()
    with pytest.raises(ValueError, match=r"0_0\.distcp: cannot be read .* fetch it again"):
        network(shards)
    assert not trace.exists()


def test_incomplete_training_checkpoints_are_refused(run: Path, tiny: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {"network.decoder.layers.0.self_attn.q_proj.lora_A.adapter.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="holds an adapter in training; name its run's folder"):
        open_checkpoint(path)
    torch.save({"state_dict": {"network.odd": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="has unknown odd"):
        network(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(ValueError, match="has no state_dict"):
        open_checkpoint(path)
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds only the trained parameters, and .*run\.json, .* is missing"):
        open_checkpoint(path)
