"""What keys mean, for ``--help``: the comments of a main's YAML, and the docstrings of the classes that keys belong to.

Docstrings are read from the sources: importing every class would load what ``--help`` does not need.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PACKAGE = Path(__file__).parents[1]
WIDTH = 116
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
KEY = re.compile(r"^( *)(\w+):(?: (.*))?$")
SEQUENCE = "tag:yaml.org,2002:seq"
BESIDE = re.compile(r"^(\w+):[^#\n]*# (.*)$", re.MULTILINE)
ABOVE = re.compile(r"((?:^# .*\n)+)(\w+):", re.MULTILINE)


def explained(config: Mapping[str, Any], main: Path) -> str:
    """``config`` in YAML, with what its keys mean above them; ``main`` is the main's own YAML."""
    own = main.read_text(encoding="utf-8")
    notes = dict(BESIDE.findall(own)) | {key: note.replace("# ", "") for note, key in ABOVE.findall(own)}
    page = yaml.dump(config, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=WIDTH)
    return "".join(f"{line}\n" for line in _lines(page, notes))


class _Dumper(yaml.SafeDumper):
    """Lists in a line, as a command line takes them."""


_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence(SEQUENCE, items, flow_style=True))


def _lines(page: str, notes: Mapping[str, str]) -> Iterator[str]:
    known: dict[int, Mapping[str, str]] = {0: notes}
    for line in page.splitlines():
        found = KEY.match(line)
        if found:
            depth, name = len(found[1]), found[2]
            known = {level: names for level, names in known.items() if level <= depth}
            if name == "_target_":
                known[depth] = meanings(found[3])
            meaning = known.get(depth, {}).get(name, "")
            yield from textwrap.wrap(meaning, WIDTH, initial_indent=f"{found[1]}# ", subsequent_indent=f"{found[1]}# ")
        yield line


@cache
def meanings(dotted: str) -> Mapping[str, str]:
    """What the docstring of the class ``dotted``, and those of its bases, say of each field."""
    module, _, name = dotted.rpartition(".")
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        return {}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    homes = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            inherited = [meanings(homes.get(base, f"{module}.{base}")) for base in bases]
            own = _fields(ast.get_docstring(node) or "")
            return {key: text for part in [*inherited, own] for key, text in part.items()}
    return {}


def _fields(docstring: str) -> dict[str, str]:
    entries = [entry for section in SECTION.findall(f"{docstring}\n") for entry in ENTRY.findall(section)]
    return {name: " ".join(text.split()).replace("``", "") for name, text in entries}
