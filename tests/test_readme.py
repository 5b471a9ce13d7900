"""README and docs tell the truth: their commands are understood, what they name is there, their Python runs."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from acestep.__main__ import build_parser
from acestep.config.run import build_nodes, compose_config, quote_argument

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# docs/extend.md has classes of its own; tests/docs/test_extend.py runs it.
PAGES = sorted(path for path in (REPOSITORY / "docs").rglob("*.md") if path.name != "extend.md")
DOCS = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", f"{TEXT}\n{DOCS}", re.DOTALL | re.MULTILINE)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.DOTALL | re.MULTILINE)
FLAGS = ("--help", "--multirun", "-m", "--cfg", "job")
FOLDERS = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def _commands(program: str) -> list[str]:
    lines = "".join(_blocks("bash")).replace("\\\n", " ").splitlines()
    words = [(line, shlex.split(line, comments=True)) for line in lines]
    return list(dict.fromkeys(line for line, words in words if words and Path(words[0]).name == program))


def _mains() -> list[str]:
    sharded = [re.sub(r"^torchrun .*?(?=\w+\.py)", "python ", line) for line in _commands("torchrun")]
    return [line for line in [*_commands("python"), *sharded] if shlex.split(line)[1].endswith(".py")]


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
    for one in _runs(Path(script).stem, overrides):
        build_nodes(compose_config(Path(script).stem, one))


def _runs(main: str, overrides: list[str]) -> list[list[str]]:
    """What a command composes: itself, or the first and the last of its sweep's runs."""
    parsed = OverridesParser.create().parse_overrides([quote_argument(word) for word in overrides if word not in FLAGS])
    parsed = [one for one in parsed if not one.key_or_group.startswith("hydra")]
    if any(one.key_or_group == "reproduce" for one in parsed):
        return []  # the rest of the command stands in the folder that it names
    values = [list(one.sweep_string_iterator()) if one.is_sweep_override() else None for one in parsed]
    place = [] if main != "evaluate" or any(one.key_or_group == "out" for one in parsed) else ["out=DIR"]
    return [
        [f"{one.key_or_group}={v[at]}" if v else one.input_line for one, v in zip(parsed, values, strict=True)] + place
        for at in ((0, -1) if any(values) else (0,))
    ]


@pytest.mark.parametrize("line", _modules())
def test_a_modules_arguments_parse(line: str) -> None:
    module, *arguments = shlex.split(line, comments=True)[2:]
    if module == "acestep":
        assert callable(build_parser().parse_args(arguments).command)
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
