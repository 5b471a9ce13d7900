"""Classes read from their source files without importing them: fields, defaults, docstrings.

``--help`` and the reference pages need these of classes whose modules import torch, Lightning or transformers.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
REQUIRED = "???"
"""OmegaConf's mark of a value that is not given."""
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n?)+)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
OPERATORS |= {ast.Pow: operator.pow}
EMPTY = {"dict": dict, "list": list, "tuple": list}


class NotStaticError(ValueError):
    """A default that cannot be read from source text."""


@dataclass(frozen=True)
class ComputedDefault:
    """The expression of a default that is more than constants, enum members and other dataclasses."""

    expression: str


@dataclass(frozen=True)
class ClassField:
    """A field of a configurable class: its annotation as written, its default as a config holds it, what it means."""

    name: str
    annotation: str
    default: Any
    text: str

    @property
    def default_text(self) -> str:
        """The default for a reader: ``required`` where there is none, a class by its name."""
        if isinstance(self.default, ComputedDefault):
            return self.default.expression
        if isinstance(self.default, dict) and "_target_" in self.default:
            return str(self.default["_target_"]).rpartition(".")[2]
        return {REQUIRED: "required", "None": "null"}.get(str(self.default), str(self.default))


@dataclass(frozen=True)
class _Module:
    """A parsed source file: what it defines, and the dotted path of what it imports by name."""

    dotted: str
    body: Mapping[str, ast.stmt]
    imports: Mapping[str, str]

    def resolve(self, name: str) -> str:
        """The dotted path of ``name`` as this module uses it."""
        return f"{self.dotted}.{name}" if name in self.body else self.imports.get(name, name)


def find_file(module: str) -> Path | None:
    """The source file of a module, found as Python's import finds it, without importing anything."""
    place = Path(*module.split("."))
    for root in dict.fromkeys([str(ROOT), *sys.path]):
        for path in (Path(root, place, "__init__.py"), Path(root, place).with_suffix(".py")):
            if path.is_file():
                return path
    return None


@cache
def _module(dotted: str) -> _Module | None:
    path = find_file(dotted)
    return _parse(dotted, path) if path else None


def _parse(dotted: str, path: Path) -> _Module:
    body: dict[str, ast.stmt] = {}
    imports: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            body[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            body |= _assignments(node)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imports |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return _Module(dotted, body, imports)


def _assignments(node: ast.Assign | ast.AnnAssign) -> dict[str, ast.stmt]:
    """The statement by the names that it assigns; of several names at once, a statement for each."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    pairs: list[tuple[ast.expr, ast.stmt]] = [(target, node)]
    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        pairs = [(name, ast.Assign([name], value)) for name, value in zip(target.elts, node.value.elts, strict=True)]
    return {name.id: statement for name, statement in pairs if isinstance(name, ast.Name)}


def _find(dotted: str) -> tuple[_Module, ast.stmt] | None:
    """The statement that defines ``dotted``, followed through re-exports, with its module."""
    module_name, _, name = dotted.rpartition(".")
    module = _module(module_name) if module_name else None
    if module is None:
        return None
    if name in module.body:
        return module, module.body[name]
    return _find(module.imports[name]) if name in module.imports else None


def _class(dotted: str) -> tuple[_Module, ast.ClassDef] | None:
    found = _find(dotted)
    return (found[0], found[1]) if found and isinstance(found[1], ast.ClassDef) else None


def defined_at(dotted: str) -> str:
    """The dotted path of the class where it is defined; ``dotted`` itself where that is not known."""
    found = _class(dotted)
    return f"{found[0].dotted}.{found[1].name}" if found else dotted


def summary(dotted: str) -> str:
    """The first paragraph of the class's docstring."""
    found = _class(dotted)
    docstring = (ast.get_docstring(found[1]) or "") if found else ""
    return _one_line(docstring.partition("\n\n")[0])


@cache
def texts(dotted: str) -> Mapping[str, str]:
    """Description of each field, from the docstrings of the class and its bases."""
    found = _class(dotted)
    if not found:
        return {}
    module, node = found
    docstring = f"{ast.get_docstring(node) or ''}\n"
    own = {name: _one_line(text) for section in SECTION.findall(docstring) for name, text in ENTRY.findall(section)}
    bases = [texts(module.resolve(base.id)) for base in node.bases if isinstance(base, ast.Name)]
    return {key: text for part in [*reversed(bases), own] for key, text in part.items()}


@cache
def fields(dotted: str) -> Mapping[str, ClassField]:
    """The fields that the constructor of the dataclass takes, those of its bases first."""
    found = _class(dotted)
    if not found:
        return {}
    module, node = found
    known: dict[str, ClassField] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            known |= fields(module.resolve(base.id))
    for line in node.body if _is_dataclass(node) else ():
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and _is_argument(line):
            try:
                default = REQUIRED if line.value is None else _default_value(line.value, line.annotation, module)
            except NotStaticError as error:
                default = ComputedDefault(str(error))
            name = line.target.id
            known[name] = ClassField(name, ast.unparse(line.annotation), default, "")
    return {name: replace(one, text=texts(dotted).get(name, "")) for name, one in known.items()}


def defaults(dotted: str) -> dict[str, Any]:
    """The class as a node of a config: ``_target_`` and its fields' defaults.

    Raises:
        NotStaticError: if a default is computed.
    """
    for one in fields(dotted).values():
        if isinstance(one.default, ComputedDefault):
            raise NotStaticError(one.default.expression)
    return {"_target_": defined_at(dotted), **{name: one.default for name, one in fields(dotted).items()}}


def _is_argument(line: ast.AnnAssign) -> bool:
    if ast.unparse(line.annotation).startswith("ClassVar"):
        return False
    keywords = line.value.keywords if isinstance(line.value, ast.Call) else []
    return not any(word.arg == "init" and ast.unparse(word.value) == "False" for word in keywords)


def _default_value(value: ast.expr, annotation: ast.expr, module: _Module) -> Any:
    """The default as a config holds it; in a field that is open to several classes, only what differs from theirs."""
    named = _class(module.resolve(annotation.id)) if isinstance(annotation, ast.Name) else None
    is_open = named is None or not _is_dataclass(named[1])
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        words = {word.arg: word.value for word in value.keywords}
        if "default_factory" not in words:
            return _evaluate(words["default"], module, is_open) if "default" in words else REQUIRED
        factory = words["default_factory"]
        value = factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])
    return _evaluate(value, module, is_open)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(one).startswith("dataclass") for one in node.decorator_list)


def _evaluate(value: ast.expr, module: _Module, is_open: bool) -> Any:
    match value:
        case ast.Constant():
            return value.value
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(value.operand, module, is_open)
        case ast.BinOp() if type(value.op) in OPERATORS:
            sides = (_evaluate(side, module, is_open) for side in (value.left, value.right))
            return OPERATORS[type(value.op)](*sides)
        case ast.Tuple() | ast.List():
            return [_evaluate(item, module, is_open) for item in value.elts]
        case ast.Dict():
            keys = [_evaluate(key, module, is_open) for key in value.keys if key is not None]
            return dict(zip(keys, (_evaluate(item, module, is_open) for item in value.values), strict=True))
        case ast.Attribute(value=ast.Name(id="math")):
            return getattr(math, value.attr)
        case ast.Attribute(value=ast.Name() as owner):
            return _member(module.resolve(owner.id), value.attr)
        case ast.Name():
            return _constant(module.resolve(value.id), is_open)
        case ast.Call(func=ast.Name() as function):
            return _call(value, function.id, module, is_open)
    raise NotStaticError(ast.unparse(value))


def _member(dotted: str, name: str) -> Any:
    """A member of an enum by its name, the default of a class's field, or a constant of a module."""
    found = _class(dotted)
    if not found:
        return _constant(f"{dotted}.{name}", is_open=True)
    if found and any(ast.unparse(base).endswith("Enum") for base in found[1].bases):
        return name
    if name in fields(dotted):
        return fields(dotted)[name].default
    raise NotStaticError(f"{dotted}.{name}")


def _constant(dotted: str, is_open: bool) -> Any:
    found = _find(dotted)
    if found and isinstance(found[1], ast.Assign | ast.AnnAssign) and found[1].value is not None:
        return _evaluate(found[1].value, found[0], is_open)
    raise NotStaticError(dotted)


def _call(value: ast.Call, name: str, module: _Module, is_open: bool) -> Any:
    if name in EMPTY and not value.args:
        return EMPTY[name]()
    dotted = module.resolve(name)
    if not _class(dotted) or value.args:
        raise NotStaticError(ast.unparse(value))
    given = {word.arg: _evaluate(word.value, module, is_open) for word in value.keywords if word.arg}
    node = defaults(dotted)
    if not is_open:
        return node | given
    return {"_target_": node["_target_"]} | {key: item for key, item in given.items() if item != node[key]}


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("``None``", "null").replace("``", "")
