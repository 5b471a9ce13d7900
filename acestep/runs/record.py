"""What a run depends on beside its config: code, packages, machine, weights and data files, by version or hash."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from acestep.files import atomic, file_hash, file_state, read_json

ROOT = Path(__file__).parents[2]
RECORD = "run.json"
DATA_FILES = "data_files.json"
HASH_CACHE = ".hashes.json"
"""In a data folder: state and hash of each file, so that unchanged files are not read again."""


def environment() -> dict[str, Any]:
    """Code, packages and machine of this process."""
    commit, diff = git_state()
    return {
        "git": {"commit": commit, "dirty": bool(diff)},
        "code_sha256": code_hash(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine_info(),
        "packages": installed_packages(),
    }


def machine_info() -> dict[str, Any]:
    """Processor, threads and GPU: they determine the order of summation, and so the rounding."""
    info: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        info["device"] = torch.cuda.get_device_name()
    return info


@cache
def installed_packages() -> dict[str, str]:
    """Version of every installed distribution, by its name in lower case."""
    versions = {(one.metadata["Name"] or "").lower(): one.version for one in importlib.metadata.distributions()}
    return dict(sorted(versions.items()))


@cache
def git_state() -> tuple[str | None, str]:
    """Commit of the code and the diff to it, with the names of new files; ``None`` and empty outside a checkout."""
    commit = _git("rev-parse", "HEAD")
    new = _git("ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml") or ""
    names = "".join(f"new file: {name}\n" for name in new.splitlines())
    return (commit or "").strip() or None, (_git("diff", "HEAD") or "") + names


@cache
def code_hash() -> str:
    """SHA-256 over every source and config file that a run can use, in version control or not."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "acestep").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml"), *ROOT.glob("*.py")]):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def hash_files(folder: Path, keep: bool = False) -> dict[str, str]:
    """SHA-256 by name of a latent store's shards, or of every visible file in a folder of another kind.

    Args:
        folder: the folder.
        keep: cache the hashes in the folder, and do not read files again whose size and times are unchanged.
    """
    cache_path = folder / HASH_CACHE
    cached = read_json(cache_path) if keep and cache_path.is_file() else {}
    states: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.parquet")) or _visible_files(folder):
        name, state = path.relative_to(folder).as_posix(), file_state(path)
        before, digest = cached.get(name, [None, ""])
        states[name] = [state and list(state), digest if state and before == list(state) else file_hash(path)]
    if keep and states != cached and os.access(folder, os.W_OK):
        with atomic(cache_path) as aside:
            aside.write_text(json.dumps(states), encoding="utf-8")
    return {name: digest for name, (_, digest) in states.items()}


def read_record(folder: Path) -> dict[str, Any]:
    """Contents of ``run.json`` in ``folder``. Raises ``ValueError`` where there is none."""
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder}: holds no run ({RECORD} is missing); name a folder that a run wrote")
    record = read_json(folder / RECORD)
    if not isinstance(record.get("config"), dict) or not isinstance(record.get("git", {}), dict):
        raise ValueError(f"{folder / RECORD}: not as a run wrote it; take it from a copy, or name another folder")
    return record


def read_data_files(folder: Path) -> dict[str, str]:
    """Hashes, by name, of the data files that the run in ``folder`` read; empty if it kept none."""
    path = folder / DATA_FILES
    return read_json(path) if path.is_file() else {}


def _visible_files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _processor() -> str:
    """Name of the processor; ``platform`` knows it on few systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return process.stdout
