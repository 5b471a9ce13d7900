"""Rules of the code base that can be checked: sizes, names, imports. The import contracts are in ``pyproject.toml``."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "acestep").rglob("*.py"))
FILE_LINES = 500
FUNCTION_LINES = 60
MAIN_LINES = 40


def python(code: str) -> str:
    """Output of ``code`` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function in the file at ``path``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_pipeline_needs_neither_lightning_nor_hydra() -> None:
    loaded = python("import sys, acestep.pipeline.pipeline; print(*sys.modules)").split()
    assert "acestep.pipeline.pipeline" in loaded
    assert not {"lightning", "hydra", "omegaconf", "laion_clap"} & set(loaded)


def test_imports_have_no_side_effects(tmp_path: Path) -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.name != "__main__.py"
    ]
    code = f"""
import importlib, os, random, sys
sys.path.insert(0, {str(ROOT)!r})
os.chdir({str(tmp_path)!r})
import numpy, torch, transformers, lightning, hydra, matplotlib
def state():
    yield "random", random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    yield "torch", torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield "environment", dict(os.environ)
before = list(state())
for name in {names!r}:
    importlib.import_module(name)
assert list(state()) == before
"""
    python(code)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES
    assert {name: count for name, count in functions(path) if count > FUNCTION_LINES} == {}


def test_classes_and_functions_have_unique_names() -> None:
    """Two classes of one name, or two functions, make a reader open both files to learn which is meant."""
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)} - {"__getattr__"}
        for name in names:
            places.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


@pytest.mark.parametrize("name", ["train.py", "evaluate.py", "infer.py"])
def test_the_mains_fit_on_a_screen(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MAIN_LINES


def test_the_path_and_the_velocity_target_are_defined_once() -> None:
    """A second definition could have another sign where no test looks."""
    words = ("noise - x0", "noise - x_0", "1 - t) * x0", "1.0 - t) * x0")
    written = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        for line in path.read_text(encoding="utf-8").splitlines()
        if any(word in line.partition("#")[0] for word in words)
    }
    assert written <= {"acestep/flow/path.py"}
