"""What a run depends on beside its config: code, packages, machine, weights and data files, each by name or hash."""

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

from acestep.data.files import file_hash, file_state
from acestep.files import atomic, read_json

ROOT = Path(__file__).parents[2]
RECORD = "run.json"
DATA_FILES = "data_files.json"
KEPT_HASHES = ".hashes.json"
"""Beside data: each file's state and hash, so that a large store is read once for them."""


def here() -> dict[str, Any]:
    """Code, packages and machine of this process."""
    commit, difference = code()
    return {
        "git": {"commit": commit, "dirty": bool(difference)},
        "code_sha256": code_hash(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "packages": packages(),
    }


def machine() -> dict[str, Any]:
    """What decides the order in which a sum is rounded: processor or card, and how many threads share the work."""
    found: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


@cache
def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found = {(one.metadata["Name"] or "").lower(): one.version for one in importlib.metadata.distributions()}
    return dict(sorted(found.items()))


@cache
def code() -> tuple[str | None, str]:
    """Commit of the code and what differs from it, new files included; none where it is no git checkout."""
    commit = _git("rev-parse", "HEAD")
    new = _git("ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml") or ""
    named = "".join(f"new file: {name}\n" for name in new.splitlines())
    return (commit or "").strip() or None, (_git("diff", "HEAD") or "") + named


@cache
def code_hash() -> str:
    """SHA-256 over every source and config file that a run could use, whatever a repository says of them."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "acestep").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml"), *ROOT.glob("*.py")]):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def hash_files(folder: Path, keep: bool = False) -> dict[str, str]:
    """SHA-256 by name of a latent store's shards, or of every file in a folder of another kind, hidden ones aside.

    With ``keep``, hashes stay in the folder, and files not touched since then are not read again.
    """
    kept_at = folder / KEPT_HASHES
    kept = json.loads(kept_at.read_text(encoding="utf-8")) if keep and kept_at.is_file() else {}
    seen: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.parquet")) or _all_files(folder):
        name, state = path.relative_to(folder).as_posix(), file_state(path)
        before, digest = kept.get(name, [None, ""])
        seen[name] = [state and list(state), digest if state and before == list(state) else file_hash(path)]
    if keep and seen != kept and os.access(folder, os.W_OK):
        with atomic(kept_at) as aside:
            aside.write_text(json.dumps(seen), encoding="utf-8")
    return {name: digest for name, (_, digest) in seen.items()}


def read_record(folder: Path) -> dict[str, Any]:
    """The ``run.json`` of the run in ``folder``. Raises ``ValueError`` where there is none."""
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder}: holds no run ({RECORD} is missing); name a folder that a run wrote")
    record = read_json(folder / RECORD)
    if not isinstance(record.get("config"), dict) or not isinstance(record.get("git", {}), dict):
        raise ValueError(f"{folder / RECORD}: not as a run wrote it; take it from a copy, or name another folder")
    return record


def read_data_files(folder: Path) -> dict[str, str]:
    """Hashes of the data files that the run in ``folder`` read, by name; none if it kept none."""
    path = folder / DATA_FILES
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _all_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _processor() -> str:
    """The processor's name; Python knows it on few systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
