"""Classes outside the package as parts of a config: options of their groups, typed by their fields, kept with a run."""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from acestep.config import source
from acestep.config.schema import SCHEMAS, load_class, node, store
from acestep.files import file_hash

CODE_FOLDER = "code"
"""Where a run folder keeps the source files of custom classes."""
_TARGET_WORD = re.compile(r"\+{0,2}([\w.]+)\._target_=([\w.,]+)")
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def add_working_directory() -> None:
    """Let modules of the current directory be imported, after everything that is installed."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def is_custom(dotted: object) -> bool:
    """Whether a ``_target_`` names a class outside the package."""
    return isinstance(dotted, str) and dotted.partition(".")[0] != "acestep"


def register_options(words: Sequence[str]) -> list[str]:
    """Register the classes that a command line names as typed options of their groups; returns the words to use.

    ``guidance._target_=mymodule.MyRule`` becomes the option ``guidance=mymodule.MyRule``. In other places, such as
    ``metrics.mine._target_=mymodule.MyMetric``, the class and its keys are added. A file of ``--config-dir`` whose
    ``_target_`` is a custom class gets the types of that class's fields.
    """
    add_working_directory()
    for folder in config_dirs(words):
        for path in sorted(folder.glob("*/*.yaml")):
            _register_file(path)
    named = {found[1]: found[2] for found in map(_TARGET_WORD.fullmatch, words) if found}
    added = tuple(f"{key}." for key, target in named.items() if key not in SCHEMAS and is_custom(target))
    used = []
    for word in words:
        key = word.partition("=")[0].lstrip("+")
        if key in named and key in SCHEMAS:
            continue  # the option that a class replaces
        group = key.removesuffix("._target_")
        if group != key and group in SCHEMAS:
            word = f"{group}={named[group]}"
        elif key.startswith(added):
            word = f"++{word.lstrip('+')}"
        used.append(word)
    for group, option in (word.split("=", 1) for word in used if word.partition("=")[0] in SCHEMAS):
        for dotted in filter(_DOTTED.fullmatch, option.split(",")):
            store(group, dotted, dotted)
    return used


def config_dirs(words: Sequence[str]) -> list[Path]:
    """The folders that ``--config-dir`` names."""
    found = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    found += [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    return [Path(folder) for folder in found]


def _register_file(path: Path) -> None:
    group = path.parent.name
    values = OmegaConf.load(path) if group in SCHEMAS else None
    if isinstance(values, DictConfig) and "defaults" not in values and is_custom(values.get("_target_")):
        plain: Any = OmegaConf.to_container(values, resolve=False)
        store(group, path.stem, plain.pop("_target_"), plain)


def check_nodes(cfg: DictConfig) -> None:
    """Check every node of a custom dataclass by the types of its fields, and fill in their defaults.

    Raises:
        ValueError: if there is no such class, or a key that is none of its fields.
    """
    for path, values in list(_nodes(cfg)):
        dotted = values["_target_"]
        plain = OmegaConf.to_container(values, resolve=False) if isinstance(values, DictConfig) else values
        cls = load_class(dotted, path)
        if not hasattr(cls, "__dataclass_fields__"):
            continue
        schema: Any = OmegaConf.structured(node(cls))
        for key in reversed(path.split(".")):
            schema, plain = {key: schema}, {key: plain}
        try:
            typed = OmegaConf.merge(schema, plain)
        except ConfigKeyError as error:
            names = ", ".join(field.name for field in cls.__dataclass_fields__.values() if field.init)
            raise ValueError(f"{error.full_key}: no such key; {dotted} has {names or 'none'}") from error
        OmegaConf.update(cfg, path, OmegaConf.select(typed, path), merge=False, force_add=True)


def _nodes(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every mapping whose ``_target_`` is a custom class, outer ones first, with its full key."""
    if not isinstance(values, DictConfig):
        return
    if "_target_" in values and is_custom(values["_target_"]):
        yield path, values
    for key in values:
        inner = values._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_interpolation():
            yield from _nodes(inner, f"{path}.{key!s}" if path else str(key))


def source_files(values: Any) -> dict[str, Path]:
    """The source file of each custom class in a plain config, by dotted path; installed packages are left out."""
    found: dict[str, Path] = {}
    for dotted in sorted(set(_targets(values))):
        file = getattr(sys.modules.get(load_class(dotted).__module__), "__file__", None)
        if file and not is_installed(Path(file)):
            found[dotted] = Path(file)
    return found


def source_hashes(values: Any) -> dict[str, dict[str, str]]:
    """Path and SHA-256 of each file of :func:`source_files`, by class."""
    return {name: {"path": str(file), "sha256": file_hash(file)} for name, file in source_files(values).items()}


def check_recorded_classes(values: Any, chosen: Any, key: str) -> None:
    """Check that each custom class of a sidecar is in the source file that the sidecar was made with.

    A sidecar may come from others, and must not run code by naming it. Classes that ``chosen``, the user's own command,
    names are not checked.

    Raises:
        ValueError: names the class.
    """
    for dotted in sorted(set(_targets(values)) - set(_targets(chosen))):
        file = source.find_file(dotted.rpartition(".")[0])
        if file is None or is_installed(file):
            raise ValueError(f"{key}: _target_={dotted}: need a class of this package, or of a file of your own")
        if file_hash(file) != values.get("code", {}).get(dotted, {}).get("sha256"):
            raise ValueError(
                f"{key}: _target_={dotted}: {file} is not the file that the song was made with; take that one, or name "
                "the class in the command"
            )


def is_installed(file: Path) -> bool:
    """Whether ``file`` is part of Python or of an installed package."""
    homes = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(file.resolve().is_relative_to(Path(home).resolve()) for home in homes)


def _targets(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        if is_custom(target := values.get("_target_")):
            yield str(target)
        values = list(values.values())
    for inner in values if isinstance(values, list | tuple) else ():
        yield from _targets(inner)


def keep_sources(folder: Path, values: Any, key: str, has_results: bool) -> None:
    """Copy the source files of custom classes to ``folder``/code.

    Raises:
        ValueError: if ``has_results`` and a file is not the one that these results were made with.
    """
    for dotted, file in source_files(values).items():
        kept = folder / CODE_FOLDER / Path(*dotted.split(".")[:-1]).with_suffix(".py")
        if kept.is_file() and has_results and file_hash(kept) != file_hash(file):
            raise ValueError(
                f"{key}={folder}: holds results of another {file.name} (kept as {kept}); name another folder, or take "
                "that file to continue"
            )
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept)
