"""Text of ``--help``: a program's own text, its groups, and every key with its value and description.

A key's description is a comment in the YAML file that gives its value, or is in the docstring of the class that it
belongs to. Classes are read from their sources, so that no network is loaded. Hydra's own page reads all groups of all
programs again and again, which takes seconds.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from acestep.config import source
from acestep.config.schema import SCHEMAS, without_imports

HELP = {"--help", "-h"}
SHARED = ("sweep", "experiment")
"""Groups with options for two programs."""
WIDTH = 116
GLOBAL = "# @package _global_"
_KEY = re.compile(r"^( *)([\w/]+):(.*?)(?: # (.*))?$")
_SEQUENCE = "tag:yaml.org,2002:seq"


@dataclass(frozen=True)
class HelpEntry:
    """A key of a composed config, by its full path, with its value and what it means."""

    path: str
    value: Any
    text: str
    is_mapping: bool

    @property
    def lines(self) -> Iterator[str]:
        """The entry as YAML, its sentence above it as a comment."""
        *parents, key = self.path.split(".")
        indent = "  " * len(parents)
        yield from textwrap.wrap(self.text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        dumped = f"{key}:" if self.is_mapping else _dump({key: self.value})
        yield textwrap.indent(dumped, indent)


class _Dumper(yaml.SafeDumper):
    """Lists in one line, as a command line takes them."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence(_SEQUENCE, items, flow_style=True))


def _dump(values: Mapping[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=WIDTH).rstrip("\n")


def help_text(configs: Path, name: str, overrides: Sequence[str], more: Sequence[Path] = ()) -> str:
    """The page of the program with config ``name``, as ``overrides`` make it.

    Args:
        configs: the package's config folder.
        name: of the program's config.
        overrides: of its command line.
        more: config folders beside it.
    """
    cfg, entries = help_entries(configs, name, overrides, more)
    groups = "\n".join(f"  {group}: {', '.join(_options(configs / group, name))}" for group in _groups(configs, name))
    keys = "\n".join(line for entry in entries for line in entry.lines)
    page = cfg.hydra.help
    return (
        f"{page.header}\n\nGroups (group=option):\n\n{groups}\n\nKeys and their values in this command (key=value):\n\n"
        f"{keys}\n\n{page.footer}"
    )


def help_entries(
    configs: Path, name: str, overrides: Sequence[str], more: Sequence[Path] = ()
) -> tuple[DictConfig, list[HelpEntry]]:
    """The composed config, and every key that it shows."""
    search = [f"hydra.searchpath=[{','.join(f'file://{folder.absolute()}' for folder in more)}]"] if more else []
    with without_imports(), initialize_config_dir(str(configs), version_base="1.3"):
        cfg = compose(name, [*overrides, *search], return_hydra_config=True)
    notes = _comments(configs / f"{name}.yaml").notes
    for group, option in cfg.hydra.runtime.choices.items():
        group, _, package = group.partition("@")
        if option and not group.startswith("hydra"):
            notes |= _option_notes([configs, *more], group, str(option), package.removeprefix("_global_."))
    values: Any = OmegaConf.to_container(cfg, enum_to_str=True)
    del values["hydra"]
    groups = {group.partition("@")[0] for group in cfg.hydra.runtime.choices}
    ordered = {key: values[key] for key in sorted(values, key=lambda key: key in groups)}
    return cfg, list(_entries(ordered, notes, {}))


def _entries(
    values: Mapping[str, Any], notes: Mapping[str, str], texts: Mapping[str, str], prefix: str = ""
) -> Iterator[HelpEntry]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        target = value.get("_target_") if isinstance(value, dict) else None
        text = notes.get(path) or texts.get(str(key)) or (source.summary(target) if target else "")
        # A mapping that a class takes as one value has no keys of its own to explain.
        is_mapping = bool(target) or (isinstance(value, dict) and bool(value) and str(key) not in texts)
        yield HelpEntry(path, value, text, is_mapping)
        if is_mapping:
            yield from _entries(value, notes, source.texts(target) if target else {}, f"{path}.")


@dataclass(frozen=True)
class _Comments:
    """The comments of a YAML file: the block at its head, and those of its keys by full path."""

    head: str
    notes: dict[str, str]


def _comments(path: Path) -> _Comments:
    notes: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    above: list[str] = []
    head: list[str] | None = None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line == GLOBAL:
            continue
        if line.lstrip().startswith("# "):
            above.append(line.lstrip().removeprefix("# "))
            continue
        if head is None:
            head, above = above, []
        if found := _KEY.match(line):
            depth = len(found[1])
            stack = [(level, key) for level, key in stack if level < depth] + [(depth, found[2])]
            text = " ".join(above) or found[4]
            if text:
                notes[".".join(key for _, key in stack)] = text
        above = []
    return _Comments(" ".join(head or ()), notes)


def _option_notes(folders: Sequence[Path], group: str, option: str, package: str) -> dict[str, str]:
    """The comments of an option's file and of those that it extends, by the keys' full paths."""
    files = [file for folder in folders if (file := folder / group / f"{option}.yaml").is_file()]
    if not files:
        return {}
    found = _comments(files[0])
    place = "" if files[0].read_text(encoding="utf-8").startswith(GLOBAL) else f"{package or group}."
    notes: dict[str, str] = {}
    for entry in yaml.safe_load(files[0].read_text(encoding="utf-8")).get("defaults", []):
        if isinstance(entry, str) and entry != "_self_" and not entry.endswith("_schema"):
            notes |= _option_notes(folders, group, entry, package)
    if place and found.head:
        notes[place.removesuffix(".")] = found.head
    return notes | {f"{place}{key}": text for key, text in found.notes.items()}


def schema_fields() -> dict[tuple[str, str], list[source.ClassField]]:
    """The fields of every schema, by group and name: name, annotation, default and sentence of each."""
    return {
        (group, name): list(source.fields(dotted).values())
        for group, classes in SCHEMAS.items()
        for name, dotted in classes.items()
    }


def _groups(configs: Path, name: str) -> list[str]:
    """The groups that the program's config draws from, Hydra's own aside."""
    entries = OmegaConf.load(configs / f"{name}.yaml").defaults
    named = [str(key).split()[-1] for entry in entries if OmegaConf.is_dict(entry) for key in entry]
    return sorted(group for group in named if group != "hydra")


def _options(group: Path, program: str) -> list[str]:
    """The group's options; of a group that programs share, those for ``program``."""
    found = sorted(group.glob("*.yaml"))
    if group.name in SHARED:
        found = [path for path in found if is_option_for(path, program)]
    return [path.stem for path in found]


def is_option_for(path: Path, program: str) -> bool:
    """Whether an option of a shared group is meant for ``program``: its first comment says that it is evaluate.py's."""
    comment = path.read_text("utf-8").removeprefix(f"{GLOBAL}\n").partition("\n")[0]
    return comment.startswith("# evaluate.py") == (program == "evaluate")
