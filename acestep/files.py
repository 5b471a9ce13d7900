"""Writing so that a kill leaves either the old file or the new one, and JSON: the only definitions, for every room."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes ``path``'s name when the block ends without an error.

    The file may be read by whom its folder may be: safetensors writes for the owner alone.
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
    """A new folder beside ``folder`` to write to; it takes ``folder``'s place when the block ends without an error.

    What is in it gets its permissions: some libraries write for their owner alone.
    """
    folder = Path(folder)
    aside, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    aside.mkdir(parents=True)
    try:
        yield aside
        _as_usual(aside)
    except BaseException:
        shutil.rmtree(aside)
        raise
    if folder.exists():
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _as_usual(folder: Path) -> None:
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``."""
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
    """Strict JSON: a NaN or an infinity is an error here, never a token that other readers reject."""
    with atomic(path) as aside:
        aside.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
