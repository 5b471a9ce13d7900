"""One run of a main: by itself, as one of a sweep's, or a recorded one once more."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from acestep.config.errors import people, sentence
from acestep.config.run_dir import again, identity, overrides
from acestep.runs.compare import compare, write_comparison
from acestep.runs.record import RECORD, hash_files, read_record
from acestep.runs.scores import score_of
from acestep.runs.status import State, Status, read_status

FOLDERS = {"train": "run.dir", "evaluate": "out"}
"""The mains whose runs leave a folder, and the key that names it."""

log = logging.getLogger(__name__)


def in_sweep() -> bool:
    """Whether this is one of the runs of ``--multirun``."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def carry_out(name: str, task: Callable[[DictConfig], Any], cfg: DictConfig) -> float | None:
    """Do ``task``, note in its folder what became of it, and return the score that a search looks at.

    In a sweep, the folder is named after the run's identity, so that the same sweep again finds what is finished and
    leaves it alone; an error ends the run and not the sweep. With ``reproduce``, the result is compared with the
    recorded run's; what differs ends the program with status 1.
    """
    if in_sweep():
        _place(name, cfg)
    folder = Path(OmegaConf.select(cfg, FOLDERS[name], throw_on_missing=True))
    before = read_status(folder)
    if before and before.main != name:
        raise ValueError(f"{FOLDERS[name]}={folder}: holds a run of {before.main}.py; name another folder")
    if before and before.state is State.finished and (in_sweep() or cfg.reproduce):
        log.info("%s: finished before", folder)
    else:
        if in_sweep():
            log.info("%s: %s", folder, " ".join(overrides()))
        with _noted(name, folder):
            ended = task(cfg)
        if ended is False:
            _note(name, folder, State.stopped)
            if in_sweep():
                sys.exit(f"stopped; to go on: {again()}")
            return None
        _note(name, folder, State.finished, score=score_of(folder, cfg.score))
    if cfg.reproduce and _writes():
        found = compare(Path(cfg.reproduce), folder)
        write_comparison(found, folder)
        log.info("%s", "\n".join(found.lines()))
        if not found.same:
            sys.exit(1)
    done = read_status(folder)
    return done.score if done else None


def _place(name: str, cfg: DictConfig) -> None:
    """Give the run a folder of its own in the sweep's."""
    key = FOLDERS[name]
    if any(override.partition("=")[0].lstrip("+") == key for override in overrides()):
        raise ValueError(
            f"{key}={OmegaConf.select(cfg, key)}: in a sweep every run has a folder of its own; name the sweep's with "
            "hydra.sweep.dir=DIR"
        )
    OmegaConf.update(cfg, key, str(Path(HydraConfig.get().sweep.dir) / identity(cfg)))


@contextmanager
def _noted(name: str, folder: Path) -> Iterator[None]:
    """Whatever ends the run is noted in its folder; outside a sweep, a run that never began leaves none."""
    if in_sweep():
        _note(name, folder, State.running)
    try:
        yield
    except Exception as error:
        told = sentence(error, name, overrides()) if isinstance(error, people()) else repr(error).splitlines()[0]
        if in_sweep() or (folder / RECORD).is_file():
            _note(name, folder, State.failed, error=told)
        if in_sweep():
            log.info("%s: failed: %s", folder, told)
        raise


def _note(name: str, folder: Path, state: State, **more: Any) -> None:
    if not _writes():
        return
    weights = folder / "weights"
    hashes = hash_files(weights) if state is State.finished and weights.is_dir() else {}
    Status(main=name, overrides=overrides(), state=state, result_sha256=hashes, **more).write(folder)


def _writes() -> bool:
    """Whether this process is the first of its run's."""
    return not rank_zero_only.rank


def expanded(name: str, arguments: Sequence[str]) -> list[str]:
    """``arguments`` with ``reproduce=DIR`` preceded by what the run in DIR was started with.

    The run goes to ``DIR-again`` unless another folder is named; what else is named replaces what was recorded.
    """
    folder = next((word.partition("=")[2] for word in arguments if word.startswith("reproduce=")), "")
    if not folder or name not in FOLDERS:
        return list(arguments)
    read_record(Path(folder))  # refuses what is no run
    recorded = OmegaConf.to_container(OmegaConf.load(Path(folder) / "overrides.yaml"))
    given = {_key(word) for word in arguments}
    theirs = {*FOLDERS.values(), "resume", "sweep"} if name == "train" else {*FOLDERS.values()}
    kept = [word for word in recorded if _key(word) not in given | theirs]
    own = [] if FOLDERS[name] in given else [f"{FOLDERS[name]}={Path(folder)}-again"]
    return [*kept, *own, *arguments]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
