"""A run from its command line: composition, checks, and the folder that says how its results came about."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from acestep.config import registry
from acestep.config.errors import PEOPLE, sentence
from acestep.config.mains import Resume

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
MACHINE_KEYS = ("hydra", "run", "resume", "logger", "data.workers", "trainer.accelerator", "trainer.devices",
                "trainer.nodes", "trainer.strategy", "callbacks.progress")
"""What does not change a result, and so no run's identity."""
PACKAGES = ("torch", "lightning", "hydra-core", "transformers", "peft", "numpy", "acestep")
FREE_TEXT = re.compile(r"^(song\.(?:caption|lyrics|language|key|time_signature)|out|from)=(?!['\"]|null$)(.*)$", re.DOTALL)

logger = logging.getLogger(__name__)


def main(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorates a script's main: it gets the composed config ``name``; a wrong input ends in one sentence and exit 1."""

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @wraps(task)
        def run() -> None:
            wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra itself prints errors of composition, and exits

            def told(cfg: DictConfig) -> None:
                with one_sentence(name, wants_traceback):
                    task(cfg)

            registry.register()
            OmegaConf.register_new_resolver("identity", lambda *, _root_: identity(_root_), replace=True)
            warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
            sys.argv[1:] = [quoted(argument) for argument in sys.argv[1:]]
            with one_sentence(name, wants_traceback):
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(told)()

        return run

    return decorate


@contextmanager
def one_sentence(name: str, wants_traceback: bool = False) -> Iterator[None]:
    """Ends the program on a person's mistake with what was wrong in the config ``name``, unless the traceback is wanted."""
    try:
        yield
    except PEOPLE as error:
        if wants_traceback:
            raise
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            message = sentence(error, name, sys.argv[1:])
        sys.exit(f"error: {message}")


def quoted(argument: str) -> str:
    """Free text as Hydra wants it, so that a shell's quotes are enough: ``song.caption="warm, slow"``."""
    found = FREE_TEXT.match(argument)
    if not found:
        return argument
    # Hydra reads backslashes as such, but before a quote, an interpolation and the end.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", found[2])
    text = re.sub(r"(\\+)$", r"\1\1", text)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"{found[1]}='{text}'"


def build(cfg: Any, **arguments: Any) -> Any:
    """The object that a node describes, its parts built first; lists and mappings become plain ones."""
    return instantiate(cfg, _convert_="all", **arguments)


def built_values(cfg: DictConfig) -> list[Any]:
    """The objects of a group of named nodes, such as ``callbacks``; those set to null are left out."""
    return [build(node) for node in cfg.values() if node is not None]


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
    """Make or re-open ``run.dir``: resolved config, overrides, code, packages, seeds, ``facts`` (such as the data's hash).

    Raises:
        ValueError: if the folder holds another run's checkpoint, or any run under ``resume=never``.
    """
    folder = Path(cfg.run.dir)
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


def _check_resume(folder: Path, resume: Resume) -> None:
    if resume is Resume.never:
        raise ValueError(f"run.dir={folder}: holds a run already; name another, or go on with resume=auto")


def _check_same(folder: Path, before: dict[str, Any], resolved: dict[str, Any]) -> None:
    there, here = _flat(before["config"]), _flat(json.loads(json.dumps(resolved, default=str)))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise ValueError(
                f"run.dir={folder}: holds a run with {key}={there.get(key)}, and this one has {here.get(key)}; "
                "name another run.dir, or give the same settings to go on"
            )


def _flat(container: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(container, dict):
        return {prefix: container}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in container.items())
    return {key: value for part in parts for key, value in part.items()}


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in ``folder`` that was written last."""
    found = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    return found[-1] if found else None


def write(path: Path, text: str) -> None:
    """Write ``text`` aside, then rename, so that the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


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
