"""Every notebook runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _code(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.long
@by_notebook
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a kernel, which `make notebooks` starts: with nothing defined before, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    try:
        exec(compile("\n\n".join(_code(path)), path.name, "exec"), {"__name__": "__main__"})
    finally:
        plt.close("all")


@by_notebook
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@by_notebook
def test_a_notebook_defines_no_class_and_imports_the_package(path: Path) -> None:
    tree = ast.parse("\n".join(_code(path)))
    assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree))
    assert any(isinstance(node, ast.Import) and node.names[0].name == "acestep" for node in ast.walk(tree))
