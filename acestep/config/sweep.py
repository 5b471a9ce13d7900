"""One run of a program: alone, as one of a sweep, or a recorded one again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from acestep.config.aliases import rename_recorded, rename_words
from acestep.config.errors import error_sentence, user_errors
from acestep.config.run_dir import command_line, identity, process_rank, task_overrides
from acestep.config.top_level import RUN_DIR_KEYS
from acestep.runs.compare import compare_runs
from acestep.runs.record import RECORD, hash_files, read_record
from acestep.runs.status import RunState, RunStatus, read_status
from acestep.runs.table import best_score

log = logging.getLogger(__name__)


def in_sweep() -> bool:
    """Whether this is one of the runs of ``--multirun``."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def run_task(name: str, task: Callable[[DictConfig], Any], cfg: DictConfig) -> float | None:
    """Run ``task``, write its state to its folder, and return the score that a search optimises.

    In a sweep, the folder is named after the run's identity, so that the same sweep started again skips runs that are
    finished; an error ends the run and not the sweep. With ``reproduce``, the result is compared with the recorded
    run's; a difference ends the program with status 1.
    """
    if in_sweep():
        _set_run_dir(name, cfg)
    folder = Path(OmegaConf.select(cfg, RUN_DIR_KEYS[name], throw_on_missing=True))
    before = read_status(folder)
    if before and before.main != name:
        raise ValueError(f"{RUN_DIR_KEYS[name]}={folder}: holds a run of {before.main}.py; name another folder")
    if before and before.state is RunState.finished and (in_sweep() or cfg.reproduce):
        log.info("%s: finished before", folder)
    else:
        if in_sweep():
            log.info("%s: %s", folder, " ".join(task_overrides()))
        with _recording_errors(name, folder):
            ended = task(cfg)
        if ended is False:
            _write_status(name, folder, RunState.stopped)
            if in_sweep():
                sys.exit(f"stopped; to resume: {command_line()}")
            return None
        _write_status(name, folder, RunState.finished, score=best_score(folder, cfg.score))
    if cfg.reproduce and not process_rank():
        result = compare_runs(Path(cfg.reproduce), folder, rename_recorded)
        result.write(folder)
        log.info("%s", "\n".join(result.lines()))
        if not result.same:
            sys.exit(1)
    status = read_status(folder)
    return status.score if status else None


def _set_run_dir(name: str, cfg: DictConfig) -> None:
    """Give the run a folder of its own in the sweep's."""
    key = RUN_DIR_KEYS[name]
    if any(_key(override) == key for override in task_overrides()):
        raise ValueError(
            f"{key}={OmegaConf.select(cfg, key)}: in a sweep every run has a folder of its own; name the sweep's with "
            "hydra.sweep.dir=DIR"
        )
    OmegaConf.update(cfg, key, str(Path(HydraConfig.get().sweep.dir) / identity(cfg)))


@contextmanager
def _recording_errors(name: str, folder: Path) -> Iterator[None]:
    """Write an error to the run's folder; outside a sweep, a run that did not start leaves no folder."""
    if in_sweep():
        _write_status(name, folder, RunState.running)
    try:
        yield
    except Exception as error:
        is_users = isinstance(error, user_errors())
        text = error_sentence(error, name, task_overrides()) if is_users else repr(error).splitlines()[0]
        if in_sweep() or (folder / RECORD).is_file():
            _write_status(name, folder, RunState.failed, error=text)
        if in_sweep():
            log.info("%s: failed: %s", folder, text)
        raise


def _write_status(name: str, folder: Path, state: RunState, **more: Any) -> None:
    if process_rank():
        return
    weights = folder / "weights"
    hashes = hash_files(weights) if state is RunState.finished and weights.is_dir() else {}
    RunStatus(main=name, overrides=task_overrides(), state=state, result_sha256=hashes, **more).write(folder)


def reproduce_arguments(name: str, arguments: Sequence[str]) -> list[str]:
    """``arguments`` with ``reproduce=DIR`` preceded by the recorded overrides of the run in DIR.

    The run goes to ``DIR-again`` unless another folder is named; what else is named replaces what was recorded.
    """
    folder = next((word.partition("=")[2] for word in arguments if word.startswith("reproduce=")), "")
    if not folder or name not in RUN_DIR_KEYS:
        return list(arguments)
    read_record(Path(folder))  # raises for a folder that is no run's
    recorded = rename_words([str(word) for word in OmegaConf.load(Path(folder) / "overrides.yaml")])
    given = {_key(word) for word in rename_words(arguments)}
    dropped = {*RUN_DIR_KEYS.values(), *(("resume", "sweep") if name == "train" else ())}
    kept = [word for word in recorded if _key(word) not in given | dropped]
    place = [] if RUN_DIR_KEYS[name] in given else [f"{RUN_DIR_KEYS[name]}={Path(folder)}-again"]
    return [*kept, *place, *arguments]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
