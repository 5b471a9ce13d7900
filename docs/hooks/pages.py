"""Reference pages, generated from config groups, schemas, argument parsers and docstrings."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from costs import costs_page
from hydra.utils import get_class
from omegaconf import OmegaConf

from acestep.__main__ import build_parser
from acestep.config.help import help_text, schema_fields
from acestep.config.schema import SCHEMAS, register
from acestep.config.source import ClassField, summary

ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example")


def generated_pages(root: Path) -> dict[str, str]:
    """Markdown of each generated page, by its file name."""
    register()
    pages = {"experiments_cost.md": costs_page()}
    pages |= {f"metrics/{name}.md": text for name, text in metric_pages(root / "configs" / "metrics")}
    pages |= {f"configuration/{name}.md": text for name, text in group_pages(root / "configs")}
    pages |= {f"commands/{name}.md": text for name, text in command_pages(root / "configs")}
    pages |= {f"python/{name}.md": text for name, text in package_pages(root / "acestep")}
    return pages


def metric_pages(folder: Path) -> Iterator[tuple[str, str]]:
    """A page for each metric of the metric lists: definition, scores, fields, use in a config."""
    specs = {
        name: spec
        for path in sorted(folder.glob("*.yaml"), reverse=True)
        for name, spec in OmegaConf.load(path).items()
        if name != "defaults"
    }
    for name, spec in specs.items():
        cls = get_class(spec._target_)
        parts = [f"# {name}", f"`{spec._target_}`", markdown(cls.__doc__ or "")]
        parts += [
            f"## `{method.name}`\n\n{markdown(text)}"
            for method in _class_methods(cls)
            if method.name in ("score", "compare", "compare_takes", "distance", "aggregate", "applies")
            and (text := ast.get_docstring(method))
        ]
        yaml = OmegaConf.to_yaml(OmegaConf.create({name: spec}))
        parts.append(f"## In a config\n\n```yaml\n{yaml}```\n\n`metrics.{name}=null` switches it off.")
        yield name, "\n\n".join(parts) + "\n"


def group_pages(configs: Path) -> Iterator[tuple[str, str]]:
    """A page for each config group: its options, and the fields of its schemas."""
    schemas = schema_fields()
    for group in sorted(path for path in configs.iterdir() if path.is_dir() and path.name != "hydra"):
        parts = [f"# {group.name}", f"Choose one: `{group.name}=OPTION`."]
        for option in sorted(group.glob("*.yaml")):
            parts.append(f"## {option.stem}\n\n```yaml\n{option.read_text(encoding='utf-8').rstrip()}\n```")
        for name, dotted in SCHEMAS.get(group.name, {}).items():
            table = _field_table(schemas[group.name, name])
            parts += [f"## Fields of `{name}_schema`", f"`{dotted}`", markdown(summary(dotted)), table]
        yield group.name, "\n\n".join(parts) + "\n"


def _field_table(fields: Sequence[ClassField]) -> str:
    """A table of the fields of a class, as a config may give them."""
    rows = []
    for field in fields:
        kind = field.annotation.replace(" | ", " or ").replace("None", "null")
        rows.append(f"| `{field.name}` | `{kind}` | `{field.default_text}` | {field.text} |")
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows]) if rows else "It has no keys."


def command_pages(configs: Path) -> Iterator[tuple[str, str]]:
    """``--help`` of the three mains and of every command of the module."""
    for main in ("train", "evaluate", "infer"):
        needed = (
            ["weights=WEIGHTS", "data.path=STORE"] if main == "train" else ["out=DIR"] if main == "evaluate" else []
        )
        text = help_text(configs, main, needed).replace(str(configs.parent), "")
        yield main, f"# {main}.py\n\n```text\n{text}\n```\n"
    parts = ["# python -m acestep", f"```text\n{build_parser().format_help()}```"]
    for name, command in sorted(_commands(build_parser())):
        parts.append(f"## {name}\n\n```text\n{command.format_help()}```")
    yield "module", "\n\n".join(parts) + "\n"


def package_pages(package: Path) -> Iterator[tuple[str, str]]:
    """A page for each package: the public classes and functions of its modules, those of its subpackages included."""
    for folder in (path for path in sorted(package.iterdir()) if (path / "__init__.py").is_file()):
        modules = [path for path in sorted(folder.rglob("*.py")) if path.stem != "__init__"]
        head = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        yield folder.name, "\n\n".join([f"# acestep.{folder.name}", markdown(head), *map(_module, modules)]) + "\n"
    single = [path for path in sorted(package.glob("*.py")) if not path.stem.startswith("__")]
    yield "modules", "\n\n".join(["# Single modules", *map(_module, single)]) + "\n"


def _module(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    start = len(path.parts) - 1 - path.parts[::-1].index("acestep")
    name = ".".join(path.parts[start:]).removesuffix(".py")
    parts = [f"## {name}", markdown(ast.get_docstring(tree) or "")]
    for item in tree.body:
        if isinstance(item, ast.FunctionDef | ast.ClassDef) and not item.name.startswith("_"):
            parts.append(_item(item))
    return "\n\n".join(parts)


def _item(item: ast.FunctionDef | ast.ClassDef) -> str:
    text = f"### {item.name}\n\n```python\n{_signature(item)}\n```\n\n{markdown(ast.get_docstring(item) or '')}"
    if isinstance(item, ast.ClassDef):
        for method in _methods(item):
            if not method.name.startswith("_") and ast.get_docstring(method):
                text += f"\n\n**`{item.name}.{method.name}`**: {markdown(ast.get_docstring(method) or '')}"
    return text


def _signature(item: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(item, ast.FunctionDef):
        returns = f" -> {ast.unparse(item.returns)}" if item.returns else ""
        return f"def {item.name}({ast.unparse(item.args)}){returns}"
    fields = [
        ast.unparse(line)
        for line in item.body
        if isinstance(line, ast.AnnAssign) and not str(getattr(line.target, "id", "_")).startswith("_")
    ]
    bases = ", ".join(ast.unparse(base) for base in item.bases)
    return "\n    ".join([f"class {item.name}({bases}):" if bases else f"class {item.name}:", *fields])


def _methods(item: ast.ClassDef) -> list[ast.FunctionDef]:
    return [line for line in item.body if isinstance(line, ast.FunctionDef)]


def _class_methods(cls: type) -> list[ast.FunctionDef]:
    """Methods that ``cls`` itself defines, from its source."""
    tree = ast.parse(Path(inspect.getfile(cls)).read_text(encoding="utf-8"))
    return [
        method
        for item in tree.body
        if isinstance(item, ast.ClassDef) and item.name == cls.__name__
        for method in _methods(item)
    ]


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                inner = list(_commands(command, f"{prefix}{name} "))
                yield from inner or [(f"{prefix}{name}", command)]


def markdown(docstring: str) -> str:
    """A Google docstring as Markdown: sections as lists, roles as code."""
    text = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", docstring)
    lines: list[str] = []
    inside = False
    for line in inspect.cleandoc(text).splitlines():
        heading = line.strip().removesuffix(":")
        if heading in SECTIONS and line.strip().endswith(":"):
            lines += ["", f"**{heading}**", ""]
            inside = True
        elif inside and line.startswith("    ") and not line.startswith("     "):
            lines.append(f"- {_entry(line.strip())}")
        elif inside and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            lines.append(line)
    return "\n".join(lines).replace("``", "`").replace("<", "&lt;")


def _entry(text: str) -> str:
    name, colon, rest = text.partition(":")
    return f"`{name}`:{rest}" if colon and " " not in name else text
