"""Torch distributed checkpoints: a folder of ``.distcp`` files, read tensor by tensor in one process.

Each ``.distcp`` file is a sequence of plain torch files. The ``.metadata`` file with their offsets is a pickle; it is
read by an unpickler that allows the classes of such metadata only, so that no other code can run.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path, PosixPath, WindowsPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata

from acestep.weights.tensors import load_plain

METADATA = ".metadata"
_CLASSES = (
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.TensorStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.TensorProperties,
    metadata.StorageMeta,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    torch.Size,
    PosixPath,
    WindowsPath,
)
_KNOWN = {(known.__module__, known.__qualname__): known for known in _CLASSES} | {
    ("torch.serialization", "_get_layout"): lambda _: torch.strided
}


class _Unpickler(pickle.Unpickler):
    """Builds the classes of a distributed checkpoint's metadata only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"{module}.{name}")


class DistributedFiles(Mapping[tuple[str, ...], Tensor]):
    """The tensors of a distributed checkpoint by their path in the saved tree; each is read on access.

    Args:
        folder: has ``.metadata`` and the ``.distcp`` files that it names.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            with (folder / METADATA).open("rb") as file:
                self._metadata = _Unpickler(file).load()
            entries, paths = self._metadata.state_dict_metadata, self._metadata.planner_data or {}
            self._names = {
                tuple(map(str, paths.get(name, (name,)))): name
                for name, entry in entries.items()
                if isinstance(entry, metadata.TensorStorageMetadata)
            }
        except (pickle.UnpicklingError, AttributeError, EOFError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"{folder / METADATA}: not the metadata of a distributed checkpoint ({error}), so it was not read"
            ) from error

    def __getitem__(self, path: tuple[str, ...]) -> Tensor:
        name = self._names[path]
        entry = self._metadata.state_dict_metadata[name]
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            index = tuple(slice(start, start + n) for start, n in zip(chunk.offsets, chunk.sizes, strict=True))
            tensor[index] = self._read_chunk(metadata.MetadataIndex(name, chunk.offsets), chunk.sizes)
        return tensor

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read_chunk(self, index: metadata.MetadataIndex, sizes: torch.Size) -> Tensor:
        stored = self._metadata.storage_data[index]
        path = self.folder / stored.relative_path
        if path.parent != self.folder or getattr(stored, "transform_descriptors", None):
            raise ValueError(f"{self.folder}: {index.fqn} is stored in a way that is not read; save it as torch does")
        try:
            with path.open("rb") as file:
                file.seek(stored.offset)
                chunk = load_plain(BytesIO(file.read(stored.length)), path)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error}), though {METADATA} lists it; fetch it again") from error
        if not isinstance(chunk, Tensor) or chunk.shape != sizes:
            raise ValueError(f"{path}: does not hold {index.fqn} {list(sizes)} as {METADATA} lists it; fetch it again")
        return chunk
