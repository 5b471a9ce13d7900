"""The run folder: what is needed to repeat its results, and to resume."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from acestep.config import aliases, custom
from acestep.config.top_level import RUN_DIR_KEYS
from acestep.files import atomic
from acestep.pipeline.build import weights_fingerprint
from acestep.runs.record import DATA_FILES, RECORD, environment, git_state, hash_files, read_record
from acestep.runs.status import STATUS
from acestep.training.checkpoint import newest_checkpoint

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
"""Keys that change no result, and so no run's identity."""


def identity(cfg: DictConfig) -> str:
    """A short hash of all that decides a run's result: a default spelt out and one left alone are the same run."""
    plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    significant = aliases.first_names(_significant(plain))
    return hashlib.sha256(json.dumps(significant, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _significant(cfg: Any) -> dict[str, Any]:
    container: Any = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    for key in MACHINE_KEYS:
        *parents, last = key.split(".")
        place = container
        for parent in parents:
            place = place.get(parent) or {}
        place.pop(last, None)
    return dict(container)


@dataclass(frozen=True)
class RunDir:
    """The folder of a run, and the checkpoint to resume from, if it holds one."""

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


def open_run_dir(cfg: DictConfig, facts: dict[str, Any] | None = None) -> RunDir:
    """Create or re-open ``run.dir``, and write all that decides the run; ``facts`` are more, such as the data's.

    The first process writes; the others of a distributed run, which Lightning starts later, only read.

    Raises:
        ValueError: if the folder holds another run's checkpoint, or any run under ``resume=never``.
    """
    folder = Path(cfg.run.dir)
    if process_rank():
        return RunDir(folder, newest_checkpoint(folder))
    resolved = resolved_config(cfg)
    checkpoint = newest_checkpoint(folder)
    if (folder / RECORD).exists():
        if cfg.resume == "never":
            raise ValueError(f"run.dir={folder}: already holds a run; name another, or resume it with resume=auto")
        if checkpoint:
            _check_same(folder, aliases.rename_recorded(read_record(folder)["config"]), resolved)
    elif folder.is_dir() and {path.name for path in folder.iterdir()} - {STATUS}:
        raise ValueError(f"run.dir={folder}: holds files but no run; name a new or empty folder")
    custom.keep_sources(folder, resolved, "run.dir", has_results=checkpoint is not None)
    write_record(
        folder, cfg, {"weights_sha256": weights_fingerprint(cfg.weights), **(facts or {})}, Path(cfg.data.path)
    )
    return RunDir(folder, checkpoint)


def write_record(folder: Path, cfg: DictConfig, facts: dict[str, Any], data: Path | None = None) -> None:
    """Write all that decides a run into its folder: config, overrides, code, packages, machine, hashes of its files.

    Args:
        folder: the run's.
        cfg: its config.
        facts: more to keep.
        data: the folder that it reads, whose files are hashed.
    """
    hashes = hash_files(data, keep=True) if data is not None and data.is_dir() else None
    resolved = resolved_config(cfg)
    classes = custom.source_hashes(resolved)
    record = {
        "config": resolved,
        "folder": str(folder),
        "identity": identity(cfg),
        "seed": cfg.get("seed"),
        "command": sys.argv,
        **environment(),
        **({"custom_code": classes} if classes else {}),
        **facts,
    }
    before = read_record(folder) if newest_checkpoint(folder) else {}
    # A run in several parts was started from a changed tree if any of its parts was.
    record["git"]["dirty"] |= before.get("git", {}).get("dirty", False)
    # run.json first: with it the folder can be resumed, whenever the program is interrupted afterwards.
    _write(folder / RECORD, json.dumps(record, indent=2, default=str) + "\n")
    _write(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    _write(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(task_overrides())))
    if difference := git_state()[1]:
        _write(folder / "code.diff", difference)
    if hashes is not None:
        _write(folder / DATA_FILES, json.dumps(hashes, indent=1) + "\n")


def resolved_config(cfg: DictConfig) -> dict[str, Any]:
    """All that decides the result, every value by its name; paths in the run's folder are relative to it."""
    relative = OmegaConf.create(OmegaConf.to_container(cfg, enum_to_str=True))
    for key in RUN_DIR_KEYS.values():
        if OmegaConf.select(relative, key, default=None) is not None:
            OmegaConf.update(relative, key, ".")
    return _significant(OmegaConf.create(OmegaConf.to_container(relative, resolve=True)))


def task_overrides() -> list[str]:
    """The overrides of this run's command line, or those that its sweep gives it."""
    return [override for override in HydraConfig.get().overrides.task if not override.startswith("reproduce=")]


def command_line() -> str:
    """The command that this program was started with."""
    return shlex.join(["python", *sys.argv])


def _check_same(folder: Path, recorded: dict[str, Any], resolved: dict[str, Any]) -> None:
    there, here = _flat(recorded), _flat(json.loads(json.dumps(resolved, default=str)))
    for key in sorted(there.keys() | here.keys()):
        if key not in there and not _is_given(key):
            continue  # a key that newer code added, at its default
        if there.get(key) != here.get(key):
            raise ValueError(
                f"run.dir={folder}: holds a run with {key}={there.get(key)}, and this one has {here.get(key)}; "
                "name another run.dir, or give the same settings to resume"
            )


def _is_given(key: str) -> bool:
    """Whether the command line names ``key`` or a group that contains it."""
    given = [override.lstrip("+~").partition("=")[0] for override in task_overrides()]
    return any(key == name or key.startswith(f"{name}.") for name in given)


def _flat(container: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(container, dict):
        return {prefix: container}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in container.items())
    return {key: value for part in parts for key, value in part.items()}


def process_rank() -> int:
    """This process's number in a distributed run; Lightning starts the others after the first."""
    return int(getattr(rank_zero_only, "rank", 0))


def _write(path: Path, text: str) -> None:
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")
