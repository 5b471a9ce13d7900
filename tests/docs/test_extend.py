"""The page on extensions: each of its files is written and each of its commands run, in order, in one directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w/]+\.(?:py|yaml))\n")


def run_section(text: str, folder: Path) -> list[str]:
    """Writes the files and runs the commands of a section; returns the names of its Python files."""
    names = []
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    for language, code in BLOCK.findall(text):
        if named := FILE.match(code):
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(code, encoding="utf-8")
            names += [named[1]] if language == "python" else []
        else:
            done = subprocess.run(["bash", "-ec", code], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return names


@pytest.mark.slow
def test_every_extension_is_one_file_and_works(tmp_path: Path) -> None:
    for program in ("train.py", "evaluate.py", "infer.py"):
        (tmp_path / program).symlink_to(ROOT / program)
    files = {title: run_section(text, tmp_path) for title, text in SECTIONS}
    assert list(files) == ["A metric", "A guidance rule", "A solver", "A data source", "An adapter kind"]
    assert all(len(names) == 1 for names in files.values())
    assert "brightness.centroid" in (tmp_path / "runs" / "brightness" / "summary.json").read_text(encoding="utf-8")
    assert (tmp_path / "runs" / "brightness" / "code" / "brightness.py").is_file()
    assert (tmp_path / "runs" / "ia3" / "code" / "ia3.py").is_file()
    for song in ("late", "named", "midpoint", "ia3"):
        assert (tmp_path / f"{song}.flac").is_file()
