"""The README tells the truth: its commands are understood, what it names is there, its Python runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from acestep.__main__ import _parser
from acestep.config.compose import composed
from acestep.config.run import check, quoted

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
FOLDERS = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def _commands(program: str) -> list[str]:
    lines = "".join(_blocks("bash")).replace("\\\n", " ").splitlines()
    words = [(line, shlex.split(line, comments=True)) for line in lines]
    return [line for line, words in words if words and Path(words[0]).name == program]


def _mains() -> list[str]:
    return [line for line in _commands("python") if shlex.split(line)[1].endswith(".py")]


def _modules() -> list[str]:
    return [line for line in _commands("python") if shlex.split(line)[1] == "-m"]


def _named() -> list[str]:
    """Paths that the prose gives in backticks or links to, and those of the drawings of folders."""
    inline = [word for span in re.findall(r"`([^`]+)`", PROSE) for word in span.split()]
    ours = [
        word for word in inline if word.endswith((".py", ".ipynb")) or (word.split("/")[0] in FOLDERS and "/" in word)
    ]
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", PROSE) if "://" not in link]
    drawn = [word for word in " ".join(_blocks("")).split() if re.fullmatch(r"[\w/]+(\.py|/)", word)]
    # Runs are what commands write; a link to a heading of this page has no file.
    return sorted({path for path in (*ours, *links, *drawn) if path and not path.startswith("runs/")})


@pytest.mark.parametrize("line", _mains())
def test_a_mains_overrides_compose(line: str) -> None:
    script, *overrides = shlex.split(line, comments=True)[1:]
    assert (REPOSITORY / script).is_file()
    check(composed(Path(script).stem, [quoted(override) for override in overrides if override != "--help"]))


@pytest.mark.parametrize("line", _modules())
def test_a_modules_arguments_parse(line: str) -> None:
    module, *arguments = shlex.split(line, comments=True)[2:]
    if module == "acestep":
        assert callable(_parser().parse_args(arguments).command)
    else:
        assert importlib.util.find_spec(module)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = {target for line in _commands("make") for target in shlex.split(line, comments=True)[1:]}
    assert {"demo", "test"} <= asked <= targets


@pytest.mark.parametrize("path", _named())
def test_what_is_named_is_there(path: str) -> None:
    assert (REPOSITORY / path).exists() or (REPOSITORY / "acestep" / path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", _blocks("python"))
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert list(tmp_path.iterdir())
