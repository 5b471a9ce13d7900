"""What makes a store quick to read: uncompressed Arrow files in ``.mirror/``, mapped into memory.

Parquet cannot be read at random. One file lists all songs in the order of their names, and is made when the store is
first opened; one for each shard holds all of it, and is made when the first of its songs is asked for. They follow the
shards that they were made of, and may be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from acestep.files import atomic

MIRROR = ".mirror"
LATENTS = ("mean", "scale")
LISTED = ("source", "sha256", "seconds", "frames", "split")
SHARD, PLACE = ".shard", ".place"
"""Columns of the index: what is asked of all songs at once; the number of a song's shard, and its row there."""


@dataclass(frozen=True)
class Shard:
    """One shard, memory-mapped. ``offsets`` count frames; its song ``i`` is ``mean[offsets[i]:offsets[i + 1]]``."""

    columns: dict[str, pa.Array]
    offsets: np.ndarray
    mean: Tensor
    scale: Tensor


def open_index(paths: Sequence[Path]) -> pa.Table:
    """``LISTED`` of all songs of the shards ``paths``, sorted by name, with ``SHARD`` and ``PLACE``."""
    state = "\n".join(f"{path.name} {_state(path)}" for path in paths)
    name = f"index-{hashlib.sha256(state.encode()).hexdigest()[:16]}.arrow"
    return _mapped(paths[0].parent / MIRROR / name, "index-*.arrow", lambda: _index(paths))


def open_shard(path: Path) -> Shard:
    """The shard at ``path``."""
    mirror = path.parent / MIRROR / f"{path.stem}-{_state(path)}.arrow"
    table = _mapped(mirror, f"{path.stem}-*.arrow", lambda: pq.read_table(path))
    # An array is quicker to ask than a table.
    columns = {name: table.column(name).chunk(0) for name in table.column_names}
    mean, scale = (columns.pop(name) for name in LATENTS)
    return Shard(columns, mean.offsets.to_numpy(), _frames_of(mean), _frames_of(scale))


def read_text(path: Path, names: Sequence[str] | None = None) -> pa.Table:
    """The columns ``names`` of the shard at ``path``, those that it has; left out, all but the latents."""
    with pq.ParquetFile(path) as file:
        held = file.schema_arrow.names
        wanted = [name for name in held if name not in LATENTS] if names is None else [n for n in names if n in held]
        return file.read(wanted, use_threads=False)


def _state(path: Path) -> str:
    state = path.stat()
    return f"{state.st_size:x}-{state.st_mtime_ns:x}"


def _index(paths: Sequence[Path]) -> pa.Table:
    parts = [read_text(path, LISTED).replace_schema_metadata() for path in paths]
    counts = [len(part) for part in parts]
    index = pa.concat_tables(parts, promote_options="default")
    index = index.append_column(SHARD, pa.array(np.repeat(np.arange(len(parts), dtype=np.int32), counts)))
    index = index.append_column(PLACE, pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in counts])))
    return index.combine_chunks().sort_by("source")


def _mapped(path: Path, kin: str, make: Callable[[], pa.Table]) -> pa.Table:
    """The table in ``path``, made first if it is not there; others that match ``kin`` are of shards that are gone."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with (path.parent / ".lock").open("w") as file:  # processes of one loader ask for the same file at once
            fcntl.flock(file, fcntl.LOCK_EX)
            if not path.exists():
                for stale in [*path.parent.glob(kin), *path.parent.glob(".[0-9]*")]:
                    stale.unlink(missing_ok=True)
                _write(path, make().combine_chunks())
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _write(path: Path, table: pa.Table) -> None:
    with atomic(path) as aside, pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _frames_of(column: pa.ListArray) -> Tensor:
    frames = column.values
    array = frames.values.to_numpy(zero_copy_only=True).reshape(-1, frames.type.list_size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
