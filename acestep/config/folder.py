"""The run folder: how its results came about, and where to go on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from acestep.config.mains import Resume
from acestep.files import atomic

ROOT = Path(__file__).parents[2]
MACHINE_KEYS = (
    "hydra",
    "run",
    "resume",
    "logger",
    "data.workers",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.nodes",
    "trainer.strategy",
    "trainer.recompute",
    "trainer.compile",
    "callbacks.progress",
)
"""What does not change a result, and so no run's identity."""
PACKAGES = ("torch", "lightning", "hydra-core", "transformers", "peft", "numpy", "acestep")


def identity(cfg: DictConfig) -> str:
    """A short hash of all that decides a run's result: a default spelt out and one left alone are the same run."""
    plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    return hashlib.sha256(json.dumps(_significant(plain), sort_keys=True, default=str).encode()).hexdigest()[:8]


def _significant(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    for key in MACHINE_KEYS:
        *parents, last = key.split(".")
        place = container
        for parent in parents:
            place = place.get(parent) or {}
        place.pop(last, None)
    return container


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything, and the checkpoint to go on from, if it has been here before."""

    path: Path
    checkpoint: Path | None

    @property
    def weights(self) -> Path:
        """Where the result goes, in the native layout."""
        return self.path / "weights"

    @property
    def last(self) -> Path:
        """The checkpoint at the end."""
        return self.path / "checkpoints" / "last.ckpt"


def start(cfg: DictConfig, facts: dict[str, Any] | None = None) -> RunFolder:
    """Make or re-open ``run.dir``: resolved config, overrides, code, packages, seed, and ``facts`` such as the data's.

    The first process writes; the others of a distributed run, which Lightning starts later, find it done.

    Raises:
        ValueError: if the folder holds another run's checkpoint, or any run under ``resume=never``.
    """
    folder = Path(cfg.run.dir)
    if rank_zero_only.rank:
        return RunFolder(folder, newest_checkpoint(folder))
    resolved = _significant(OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)))
    record = folder / "run.json"
    checkpoint = newest_checkpoint(folder)
    if record.exists():
        _check_resume(folder, cfg.resume)
        if checkpoint:
            _check_same(folder, json.loads(record.read_text(encoding="utf-8")), resolved)
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"run.dir={folder}: holds files but no run; name a new or empty folder")
    write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(HydraConfig.get().overrides.task))))
    commit, difference = _code()
    if difference:
        write(folder / "code.diff", difference)
    facts = {
        "config": resolved,
        "identity": identity(cfg),
        "seed": cfg.get("seed"),
        "command": sys.argv,
        "git": {"commit": commit, "dirty": bool(difference)},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        **(facts or {}),
    }
    write(record, json.dumps(facts, indent=2, default=str) + "\n")
    return RunFolder(folder, checkpoint)


def again() -> str:
    """The command that this program was started with."""
    return shlex.join(["python", *sys.argv])


def _check_resume(folder: Path, resume: Resume) -> None:
    if resume is Resume.never:
        raise ValueError(f"run.dir={folder}: holds a run already; name another, or go on with resume=auto")


def _check_same(folder: Path, before: dict[str, Any], resolved: dict[str, Any]) -> None:
    there, here = _flat(before["config"]), _flat(json.loads(json.dumps(resolved, default=str)))
    for key in sorted(there.keys() | here.keys()):
        if key not in there and not _is_given(key):
            continue  # newer code brought the key, and nobody asked for more
        if there.get(key) != here.get(key):
            raise ValueError(
                f"run.dir={folder}: holds a run with {key}={there.get(key)}, and this one has {here.get(key)}; "
                "name another run.dir, or give the same settings to go on"
            )


def _is_given(key: str) -> bool:
    """Whether the command line names ``key`` or what it is a part of."""
    given = [override.lstrip("+~").partition("=")[0] for override in HydraConfig.get().overrides.task]
    return any(key == name or key.startswith(f"{name}.") for name in given)


def _flat(container: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(container, dict):
        return {prefix: container}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in container.items())
    return {key: value for part in parts for key, value in part.items()}


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in ``folder`` that was written last; what a kill left half-written is hidden, and passed over."""
    found = sorted((folder / "checkpoints").glob("[!.]*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def write(path: Path, text: str) -> None:
    """Write ``text`` so that the file is whole or as before."""
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _code() -> tuple[str | None, str]:
    """Commit of the code and the difference of the files from it; none where it is no git checkout."""
    commit = _git("rev-parse", "HEAD")
    return (commit or "").strip() or None, _git("diff", "HEAD") or ""


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
