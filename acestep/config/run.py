"""From a command line to objects: composition, checks, and a user's mistakes as one sentence."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from acestep.config import aliases, custom, schema
from acestep.config.errors import error_sentence, user_errors
from acestep.config.help import HELP, help_text
from acestep.config.top_level import RUN_DIR_KEYS, TRAIN_KEYS, check_keys

if TYPE_CHECKING:
    from acestep.training.tasks import TrainJob

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


def hydra_program(name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Decorates a program: it gets the composed config ``name``; a user's mistake ends in one sentence and exit 1.

    ``train`` returns ``False`` when it was stopped before its last step; ``evaluate`` returns nothing.
    """

    def decorate(task: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @wraps(task)
        def run() -> None:
            show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
            schema.register()
            warnings.filterwarnings("ignore", module=r"lightning\.pytorch\.utilities\._pytree")
            with exit_with_sentence(name, show_traceback), _raising_hydra():
                sys.argv[1:] = _arguments(name, sys.argv[1:])
                if HELP & set(sys.argv):
                    overrides = [word for word in sys.argv[1:] if _is_override(word)]
                    sys.stdout.write(f"{help_text(CONFIGS, name, overrides, custom.config_dirs(sys.argv[1:]))}\n")
                    sys.exit(0)
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(
                    HydraTask(name, task, show_traceback)
                )()

        return run

    return decorate


def _arguments(name: str, words: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: quoted, under today's names, custom classes as options of their groups."""
    several = any(word in SWEEPS or word.startswith("hydra.mode=") for word in words)
    words = [quote_argument(word, several) for word in words]
    if any(word.startswith("reproduce=") for word in words) and not HELP & set(words):
        from acestep.config.sweep import reproduce_arguments  # late, since it loads Lightning

        words = reproduce_arguments(name, words)
    words = custom.register_options(aliases.rename_words(words))
    # Hydra's parser takes overrides that stand together only.
    return sorted(words, key=lambda word: not _is_override(word))


def _is_override(word: str) -> bool:
    return ("=" in word or word.startswith("~")) and not word.startswith("-")


@dataclass(frozen=True)
class HydraTask:
    """A program as Hydra's launchers call it. Picklable, for launchers that use other processes."""

    name: str
    task: Callable[[DictConfig], Any]
    show_traceback: bool

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run the task; returns its score for a sweep."""
        schema.register()
        custom.add_working_directory()
        if self.name not in RUN_DIR_KEYS:
            with exit_with_sentence(self.name, self.show_traceback):
                self.task(prepare(cfg))
            return None
        from acestep.config.sweep import in_sweep, run_task  # late, since it loads Lightning

        # In a sweep an error ends its run alone, and is reported at the sweep's end.
        with nullcontext() if in_sweep() else exit_with_sentence(self.name, self.show_traceback):
            return run_task(self.name, self.task, prepare(cfg))


def prepare(cfg: DictConfig) -> DictConfig:
    """A composed config with former names replaced, and nodes of custom classes checked."""
    OmegaConf.set_readonly(cfg, False)
    aliases.rename_targets(cfg)
    custom.check_nodes(cfg)
    return cfg


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
def exit_with_sentence(name: str, show_traceback: bool = False) -> Iterator[None]:
    """Ends the program on a user's mistake with one sentence, unless the traceback is wanted; also on Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped: finished results are kept, and the same command continues from there\n")
        sys.exit(INTERRUPTED)
    except user_errors() as error:
        if show_traceback:
            raise
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            message = error_sentence(error, name, sys.argv[1:])
        sys.exit(f"error: {message}")


def quote_argument(argument: str, several: bool = False) -> str:
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
    # Hydra reads backslashes as such, except before a quote, an interpolation and the end.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", found[2])
    text = re.sub(r"(\\+)$", r"\1\1", text)
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"{found[1]}='{text}'"


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config ``name`` with ``overrides``, as its program gets it, without a command line."""
    schema.register()
    words = custom.register_options(aliases.rename_words(overrides))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return prepare(compose(name, words))


def build(cfg: Any, **arguments: Any) -> Any:
    """The object that a node describes, its parts built first; lists and mappings become plain ones."""
    return instantiate(cfg, _convert_="all", **arguments)


def build_values(cfg: DictConfig) -> list[Any]:
    """The objects of a group of named nodes, such as ``callbacks``; those set to null are left out."""
    return [build(node) for node in cfg.values() if node is not None]


def build_nodes(cfg: DictConfig) -> dict[str, Any]:
    """The object of every group that names a class, by its key; ``None`` for a group without one.

    Raises:
        ValueError: before anything is loaded, if a key is missing or a value breaks its own rules.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ValueError(f"{missing[0]}: not given; add {missing[0]}=...")
    nodes = {str(key): node for key, node in cfg.items() if OmegaConf.is_dict(node)}
    return {key: build(node) if "_target_" in node else None for key, node in nodes.items()}


def build_job(cfg: DictConfig, nodes: dict[str, Any]) -> TrainJob:
    """The training that ``cfg`` describes, of the objects that :func:`build_nodes` made of it."""
    from acestep.training.fit import NetworkInit
    from acestep.training.module import Optimization
    from acestep.training.tasks import TrainSpec

    check_keys({key: cfg[key] for key in TRAIN_KEYS}, TRAIN_KEYS)
    try:
        start = NetworkInit(cfg.network)
    except ValueError as error:
        names = [member.value for member in NetworkInit]
        raise ValueError(f"network={cfg.network}: need {', '.join(names[:-1])} or {names[-1]}") from error
    spec = TrainSpec(
        weights=cfg.weights,
        start=start,
        trainable=cfg.trainable,
        optimization=Optimization(optimizer=nodes["optimizer"], lr=nodes["lr"]),
        seed=cfg.seed,
        **{key: nodes[key] for key in ("model", "adapter", "objective", "data", "trainer")},
    )
    return nodes["task"](spec)
