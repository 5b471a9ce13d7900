"""From a command line to objects: composition, checks, and mistakes told in one sentence."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from acestep.config import registry
from acestep.config.errors import people, sentence
from acestep.config.help import HELP, help_text

CONFIGS = Path(__file__).parents[2] / "configs"
FREE_TEXT = re.compile(
    r"^(song\.(?:caption|lyrics|language|key|time_signature|name|source|source_caption|source_lyrics)|out|from|songs)="
    r"(?!['\"]|null$)(.*)$",
    re.DOTALL,
)
PATHS = re.compile(r"^(weights|run\.dir|data\.path|language\.path|eval\.prompts\.path)=(?!null$)(.*)$", re.DOTALL)
"""Keys of a path, which is quoted where Hydra would read it as something else; lists and interpolations stay."""
PLAIN_PATH = re.compile(r"[A-Za-z./~_][\w./:@%+~-]*|['\"\[?].*|.*\$\{.*", re.DOTALL)

INTERRUPTED = 128 + signal.SIGINT
"""The exit status of a program that Ctrl-C stopped."""
SWEEPS = ("-m", "--multirun")
LEAVE_FOLDERS = ("train", "evaluate")
"""The mains whose runs are kept, swept and done again."""


def main(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorates a main: it gets the composed config ``name``; a mistake of its user ends in one sentence and exit 1.

    A main that leaves folders returns ``False`` where it was stopped before its end.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(task)
        def run() -> None:
            wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
            registry.register()
            warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
            several = any(word in SWEEPS or word.startswith("hydra.mode=") for word in sys.argv)
            sys.argv[1:] = [quoted(argument, several) for argument in sys.argv[1:]]
            if HELP & set(sys.argv):
                with one_sentence(name, wants_traceback):
                    sys.exit(_show_help(name))
            with one_sentence(name, wants_traceback), _raising_hydra():
                if any(word.startswith("reproduce=") for word in sys.argv):
                    from acestep.config.sweep import expanded

                    sys.argv[1:] = expanded(name, sys.argv[1:])
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(
                    Told(name, task, wants_traceback)
                )()

        return run

    return decorate


@dataclass(frozen=True)
class Told:
    """A main as Hydra calls it, here or, in a sweep, in a process of its own; an object, since it has to get there."""

    name: str
    task: Callable[[DictConfig], Any]
    wants_traceback: bool

    def __call__(self, cfg: DictConfig) -> float | None:
        """Do it; a sweep gets the score."""
        registry.register()
        if self.name not in LEAVE_FOLDERS:
            with one_sentence(self.name, self.wants_traceback):
                self.task(cfg)
            return None
        from acestep.config.sweep import carry_out, in_sweep  # here, since it loads Lightning

        # An error ends a run, and not the sweep that it is one of: that is told at the end.
        with nullcontext() if in_sweep() else one_sentence(self.name, self.wants_traceback):
            return carry_out(self.name, self.task, cfg)


def _show_help(name: str) -> int:
    overrides = [word for word in sys.argv[1:] if not word.startswith("-")]
    sys.stdout.write(f"{help_text(CONFIGS, name, overrides)}\n")
    return 0


@contextmanager
def _raising_hydra() -> Iterator[None]:
    """Inside, Hydra raises its errors; by default it prints them itself and exits."""
    before = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def one_sentence(name: str, wants_traceback: bool = False) -> Iterator[None]:
    """Ends the program on a person's mistake with what was wrong, unless the traceback is wanted; also on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped: what is finished is kept, and the same command goes on from there\n")
        sys.exit(INTERRUPTED)
    except people() as error:
        if wants_traceback:
            raise
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            message = sentence(error, name, sys.argv[1:])
        sys.exit(f"error: {message}")


def quoted(argument: str, several: bool = False) -> str:
    """Free text as Hydra wants it, so that a shell's quotes are enough: ``song.caption="warm, slow"``.

    Args:
        argument: of the command line.
        several: whether it may hold values of a sweep, so that a comma in a path is one between paths.
    """
    found = FREE_TEXT.match(argument)
    if not (found or several) and (path := PATHS.match(argument)) and not PLAIN_PATH.fullmatch(path[2]):
        found = path
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


def check(cfg: DictConfig) -> None:
    """Refuse, before anything is loaded, a config in which a key is missing or a value breaks its own rules."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"{missing[0]}: not given; add {missing[0]}=...")
    for node in cfg.values():
        if OmegaConf.is_dict(node) and "_target_" in node:
            build(node)
