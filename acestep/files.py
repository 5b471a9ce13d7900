"""Atomic writes, JSON, and hashes of files and tensors, for every package. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SETTLED_NS = 2_000_000_000


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it is renamed to ``path`` when the block ends without an error.

    A process killed at any time leaves either the old file or the new one. The new file gets the read permissions of
    its folder, since safetensors creates files that only their owner can read.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{get_ident()}.{path.name}")
    try:
        yield aside
        aside.chmod(path.parent.stat().st_mode & 0o644)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; it replaces ``folder`` when the block ends without an error.

    Its files get the permissions of the folder, since some libraries create files that only their owner can read.
    """
    folder = Path(folder)
    aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    aside.mkdir(parents=True)
    try:
        yield aside
        mode = aside.stat().st_mode & 0o777
        for path in aside.rglob("*"):
            path.chmod(mode if path.is_dir() else mode & 0o666)
    except BaseException:
        shutil.rmtree(aside)
        raise
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        ValueError: there is no such file, or it does not hold one JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; is this the checkpoint's folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); fetch or write it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: need a JSON object, not {type(value).__name__}; fetch or write it again")
    return value


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON: NaN and infinity raise ``ValueError``, since other readers reject them."""
    with atomic(path) as aside:
        aside.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def file_hash(file: Path | bytes) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: there is no such file.
        ValueError: the path is not a regular file.
    """
    if isinstance(file, bytes):
        return hashlib.sha256(file).hexdigest()
    if file.exists() and not file.is_file():
        raise ValueError("not a regular file")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_state(file: Path | bytes) -> tuple[int, int, int] | None:
    """Size, modification and status-change times of a file, to see whether its content may have changed.

    ``None`` for bytes, for a missing file, and for one that changed within the last two seconds: it could change again
    without a new time stamp. The status-change time cannot be set by programs, unlike the modification time.
    """
    try:
        state = None if isinstance(file, bytes) else file.stat()
    except OSError:
        return None
    if state is None or time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < SETTLED_NS:
        return None
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def tensors_hash(tensors: Mapping[str, Tensor], prefix: str = "") -> str:
    """SHA-256 over ``prefix`` and the name, shape and float32 values of every tensor, in order of name.

    The storage dtype does not matter, so that a half-precision copy of the same numbers has the same hash.
    """
    digest = hashlib.sha256(prefix.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
