"""Tensor files: read lazily from safetensors, loaded strictly into modules, written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acestep.files import atomic, read_json

MAX_NAMES = 5
"""Longest list of tensor names in an error message."""

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
class TensorLocation:
    """The bytes ``start`` to ``end`` of the file ``path``, which is ``size`` bytes long, as a tensor."""

    path: Path
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def mapped(self) -> Tensor:
        """The tensor, memory-mapped; the mapping is closed when it is freed."""
        file = torch.from_file(str(self.path), shared=False, size=self.size, dtype=torch.uint8)
        raw = file[self.start : self.end]
        aligned = raw.clone() if self.start % self.dtype.itemsize else raw
        return aligned.view(self.dtype).view(self.shape)


class TensorFiles(Mapping[str, Tensor]):
    """Tensors in files; each is memory-mapped on access, and not cached."""

    def __init__(self, locations: Mapping[str, TensorLocation]) -> None:
        self.locations = locations

    def __getitem__(self, name: str) -> Tensor:
        return self.locations[name].mapped()

    def __iter__(self) -> Iterator[str]:
        return iter(self.locations)

    def __len__(self) -> int:
        return len(self.locations)


@dataclass(frozen=True)
class RenamedTensors(Mapping[str, Tensor]):
    """``tensors`` by other keys, and some ``more`` tensors; each is read on access.

    Args:
        tensors: the tensors by their old keys.
        names: the old key of each new key.
        more: further tensors; they replace those of the same key.
    """

    tensors: Mapping[Any, Tensor]
    names: Mapping[str, Any]
    more: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.more[name] if name in self.more else self.tensors[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return chain(self.names, self.more)

    def __len__(self) -> int:
        return len(self.names) + len(self.more)


def open_tensors(folder: Path, stem: str = "model", rename: Callable[[str], str] = str) -> TensorFiles:
    """The tensors of ``folder/STEM.safetensors``, or of the shards in ``folder/STEM.safetensors.index.json``.

    Args:
        folder: where the files are.
        stem: their name.
        rename: from the name in the file to the key.

    Raises:
        ValueError: a file is missing or broken.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    paths = [single] if single.is_file() else _shards(index)
    return TensorFiles({rename(name): at for path in paths for name, at in _read_header(path).items()})


def _shards(index: Path) -> list[Path]:
    folder = index.parent
    if not index.is_file():
        pickles = " (pickled weights are not read)" if [*folder.glob("*.bin"), *folder.glob("*.pt*")] else ""
        single = index.name.removesuffix(".index.json")
        raise ValueError(f"{folder}: has neither {single} nor {index.name}{pickles}; fetch or convert it first")
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise ValueError(f"{folder}: {shard} is missing, though {index.name} lists it; fetch it again")
    return [folder / shard for shard in shards]


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str) -> None:
    """Load ``tensors``, cast to ``dtype``, into ``module``, which is built on the meta device; names must be equal.

    Raises:
        ValueError: tensors are missing, unknown, of another shape, or not finite.
    """
    expected = module.state_dict()
    _check_names(expected, tensors, source)
    loaded = {}
    for name, parameter in expected.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"weights={source}: {name} has shape {list(tensor.shape)}, this network needs {list(parameter.shape)}; "
                "the checkpoint is of another size"
            )
        if not all_finite(tensor):
            raise ValueError(f"weights={source}: {name} holds numbers that are not finite; fetch or train it again")
        loaded[name] = tensor.to(dtype if tensor.is_floating_point() else None)
    module.load_state_dict(loaded, strict=True, assign=True)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``tensors``, floating-point ones cast to ``dtype``, to ``path``: one at a time, atomically."""
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
            tensor = tensors[name].detach()
            tensor = tensor.to("cpu", dtype if tensor.is_floating_point() else None)
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def load_plain(file: Any, path: Path, mmap: bool = False) -> Any:
    """Load a torch file of tensors and plain values.

    Args:
        file: path or stream to read.
        path: its name in messages.
        mmap: map tensors instead of reading them.

    Raises:
        ValueError: the file is missing or broken, or its pickle names anything but tensors and plain values.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; fetch it from the checkpoint's repository") from error
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a plain tensor file, so it was not opened; fetch it again") from error


def all_finite(tensor: Tensor) -> bool:
    """Whether no value of ``tensor`` is NaN or infinite, in one pass over memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def _read_header(path: Path) -> dict[str, TensorLocation]:
    """Locations of a file's tensors by name; ``safe_open`` checks that the file is complete."""
    try:
        with safe_open(path, framework="pt"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch or write it again") from error
    header.pop("__metadata__", None)
    size, locations = path.stat().st_size, {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{path}: {name} is stored as {entry['dtype']}; need one of {', '.join(DTYPES)}")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        locations[name] = TensorLocation(path, size, DTYPES[entry["dtype"]], tuple(entry["shape"]), start, end)
    return locations


def _check_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    missing = [f"{name} {list(tensor.shape)}" for name, tensor in expected.items() if name not in given]
    unknown = [name for name in given if name not in expected]
    problems = []
    for names, verb in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            problems.append(f"{verb} {', '.join(names[:MAX_NAMES])}{more}")
    if problems:
        raise ValueError(f"weights={source}: {'; '.join(problems)}; the checkpoint is of another kind or size")
