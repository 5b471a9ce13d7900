"""The run folder: how its results came about, and where to go on."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from acestep.config.top_level import Resume
from acestep.files import atomic
from acestep.pipeline.build import fingerprint
from acestep.runs.record import DATA_FILES, RECORD, code, hash_files, here, read_record
from acestep.runs.status import STATUS

MACHINE_KEYS = (
    "hydra",
    "run",
    "out",
    "resume",
    "reproduce",
    "score",
    "compare",
    "wandb",
    "device",
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
    resolved = resolved_config(cfg)
    record = folder / RECORD
    checkpoint = newest_checkpoint(folder)
    if record.exists():
        _check_resume(folder, cfg.resume)
        if checkpoint:
            _check_same(folder, read_record(folder), resolved)
    elif folder.is_dir() and {path.name for path in folder.iterdir()} - {STATUS}:
        raise ValueError(f"run.dir={folder}: holds files but no run; name a new or empty folder")
    write_record(folder, cfg, {"weights_sha256": fingerprint(cfg.weights), **(facts or {})}, Path(cfg.data.path))
    return RunFolder(folder, checkpoint)


def write_record(folder: Path, cfg: DictConfig, facts: dict[str, Any], data: Path | None = None) -> None:
    """All that decides a run, into its folder: config, overrides, code, packages, machine, hashes of its files.

    Args:
        folder: the run's.
        cfg: its config.
        facts: more to keep.
        data: the folder that it reads, whose files are hashed.
    """
    hashes = hash_files(data, keep=True) if data is not None and data.is_dir() else None
    record = {
        "config": resolved_config(cfg),
        "folder": str(folder),
        "identity": identity(cfg),
        "seed": cfg.get("seed"),
        "command": sys.argv,
        **here(),
        **facts,
    }
    before = read_record(folder) if newest_checkpoint(folder) else {}
    # A run that was interrupted is as clean as its worst part.
    record["git"]["dirty"] |= before.get("git", {}).get("dirty", False)
    # First what makes the folder a run's: whatever ends the program from here on, the same command goes on.
    write(folder / RECORD, json.dumps(record, indent=2, default=str) + "\n")
    write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides())))
    if difference := code()[1]:
        write(folder / "code.diff", difference)
    if hashes is not None:
        write(folder / DATA_FILES, json.dumps(hashes, indent=1) + "\n")


def resolved_config(cfg: DictConfig) -> dict[str, Any]:
    """What decides the result, every value by its name; what lies in the run's folder, by its place there."""
    here = OmegaConf.create(OmegaConf.to_container(cfg, enum_to_str=True))
    for key in ("run.dir", "out"):
        if OmegaConf.select(here, key, default=None) is not None:
            OmegaConf.update(here, key, ".")
    return _significant(OmegaConf.create(OmegaConf.to_container(here, resolve=True)))


def overrides() -> list[str]:
    """What this run's command line, or its sweep, says beside the config files."""
    return [override for override in HydraConfig.get().overrides.task if not override.startswith("reproduce=")]


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
    given = [override.lstrip("+~").partition("=")[0] for override in overrides()]
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
