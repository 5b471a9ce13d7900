"""Tensors in files: read one by one from safetensors, put strictly into modules, written one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acestep.files import atomic, read_json

NAMED = 5
"""How many offending tensors an error message lists."""

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: the bytes ``start`` to ``end`` of the file ``path``, which is ``size`` bytes long."""

    path: Path
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def mapped(self) -> Tensor:
        """The tensor, memory-mapped; its pages are given back with it."""
        whole = torch.from_file(str(self.path), shared=False, size=self.size, dtype=torch.uint8)
        raw = whole[self.start : self.end]
        aligned = raw.clone() if self.start % self.dtype.itemsize else raw
        return aligned.view(self.dtype).view(self.shape)


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of safetensors files under new names: each is memory-mapped when asked for, and not kept.

    Args:
        paths: the files.
        rename: from a stored name to the one to show.
    """

    def __init__(self, *paths: Path, rename: Callable[[str], str] = str) -> None:
        self._stored = {rename(name): place for path in paths for name, place in _read_header(path).items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].mapped()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __or__(self, other: TensorFiles) -> TensorFiles:
        """The tensors of both."""
        both = TensorFiles()
        both._stored = self._stored | other._stored
        return both

    def without(self, name: str) -> TensorFiles:
        """All but one."""
        rest = TensorFiles()
        rest._stored = {key: place for key, place in self._stored.items() if key != name}
        return rest


@dataclass(frozen=True)
class Renamed(Mapping[str, Tensor]):
    """Some tensors of another mapping under new names, and a few more; nothing is read before it is asked for."""

    tensors: Mapping[Any, Tensor]
    names: Mapping[str, Any]
    more: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.more[name] if name in self.more else self.tensors[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return chain(self.names, self.more)

    def __len__(self) -> int:
        return len(self.names) + len(self.more)


def open_tensors(folder: Path, stem: str = "model", rename: Callable[[str], str] = str) -> TensorFiles:
    """``folder/STEM.safetensors``, or the shards that ``folder/STEM.safetensors.index.json`` lists."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return TensorFiles(single, rename=rename)
    if not index.is_file():
        pickles = " (pickled weights are not read)" if [*folder.glob("*.bin"), *folder.glob("*.pt*")] else ""
        raise ValueError(f"{folder}: has neither {single.name} nor {index.name}{pickles}; fetch or convert it first")
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ValueError(f"{folder}: {shard} is missing, though {index.name} lists it; fetch it again")
    return TensorFiles(*(folder / shard for shard in shards), rename=rename)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> None:
    """Fill ``module`` (built on the meta device) with exactly the ``tensors`` it names, cast to ``dtype``.

    Raises:
        ValueError: names what is missing, unknown, misshapen or not finite.
    """
    wanted = module.state_dict()
    _check_names(wanted, tensors, source)
    loaded = {}
    for name, place in wanted.items():
        tensor = tensors[name]
        if tensor.shape != place.shape:
            raise ValueError(
                f"weights={source}: {name} has shape {list(tensor.shape)}, this network needs {list(place.shape)}; "
                "the checkpoint is of another size"
            )
        if not all_finite(tensor):
            raise ValueError(f"weights={source}: {name} holds numbers that are not finite; fetch or train it again")
        loaded[name] = tensor.to(dtype if tensor.is_floating_point() else None)
    module.load_state_dict(loaded, strict=True, assign=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``tensors`` (floating ones cast to ``dtype``) to ``path`` one by one, aside and then renamed."""

    def stored(name: str) -> Tensor:
        tensor = tensors[name].detach()
        return tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
        start, end = end, end + tensor.numel() * kind.itemsize
        header[name] = {"dtype": DTYPE_NAMES[kind], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic(path) as aside, aside.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(tensors):
            file.write(stored(name).flatten().view(torch.uint8).numpy().data)


def load_plain(file: Any, path: Path, mmap: bool = False) -> Any:
    """What a torch file holds, if that is tensors and plain values only; a pickle that names anything else is refused.

    Args:
        file: path or stream to read.
        path: what to call it.
        mmap: map tensors instead of reading them.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; fetch it from the checkpoint's repository") from error
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a plain tensor file, so it was not opened; fetch it again") from error


def all_finite(tensor: Tensor) -> bool:
    """Whether no number of ``tensor`` is NaN or infinite, at the speed of memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def _read_header(path: Path) -> dict[str, Stored]:
    """Names and places of a file's tensors; the library checks that the file is whole."""
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from error
    header.pop("__metadata__", None)
    size, places = path.stat().st_size, {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {name} is stored as {entry['dtype']}; need one of {', '.join(DTYPES)}")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        places[name] = Stored(path, size, DTYPES[entry["dtype"]], tuple(entry["shape"]), start, end)
    return places


def _check_names(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    missing = [f"{name} {list(tensor.shape)}" for name, tensor in wanted.items() if name not in found]
    unknown = [name for name in found if name not in wanted]
    problems = []
    for names, verb in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            problems.append(f"{verb} {', '.join(names[:NAMED])}{more}")
    if problems:
        raise ValueError(f"weights={source}: {'; '.join(problems)}; the checkpoint is of another kind or size")
