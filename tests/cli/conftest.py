"""``infer.py`` in this process, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., tuple[int | str, list[str]]]


@pytest.fixture
def infer_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``infer.py`` as a module, in an empty folder."""
    spec = importlib.util.spec_from_file_location("infer", REPOSITORY / "infer.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    return script


@pytest.fixture
def run(
    tiny: Path, infer_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the script in an empty folder with one step per song; returns its exit status and the printed lines."""

    def run(*arguments: str) -> tuple[int | str, list[str]]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["infer.py", f"weights={tiny}", "schedule.steps=1", *arguments])
        status = 0
        try:
            infer_script.infer()
        except SystemExit as stopped:
            status = stopped.code
        return status, capsys.readouterr().out.splitlines()

    return run
