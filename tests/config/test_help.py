"""``--help`` explains every key, and loads neither torch nor Lightning."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from acestep.config import schema, source
from acestep.config.help import HelpEntry, help_entries, is_option_for, schema_fields
from acestep.config.run import CONFIGS
from acestep.config.schema import SCHEMAS, node

ROOT = Path(__file__).parents[2]
PROGRAMS = {"train": ["weights=W", "data.path=D"], "evaluate": ["out=O"], "infer": []}
HEAVY = ("torch", "lightning", "transformers", "peft")
COMPUTED = ("acestep.flow.Discrete", "acestep.cli.plan_songs.Planning")
"""Classes whose defaults only Python can compute; the help of these options imports them."""
CLASSES = [dotted for classes in SCHEMAS.values() for dotted in classes.values()]


def help_page(script: str, *arguments: str) -> str:
    """What ``script --help`` prints in a process of its own, which must not load ``HEAVY``."""
    code = f"""
import runpy, sys
sys.argv = ["{script}", *{arguments!r}, "--help"]
try:
    runpy.run_path("{script}", run_name="__main__")
except SystemExit as stopped:
    assert not stopped.code, stopped.code
assert not set({HEAVY!r}) & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def options() -> Iterator[tuple[str, str]]:
    """A program and an override for each option of each of its groups."""
    for program in PROGRAMS:
        defaults = OmegaConf.load(CONFIGS / f"{program}.yaml").defaults
        for group in (str(key).split()[-1] for entry in defaults if OmegaConf.is_dict(entry) for key in entry):
            for path in sorted((CONFIGS / group).glob("*.yaml")) if group != "hydra" else ():
                if group not in ("sweep", "experiment") or is_option_for(path, program):
                    yield program, f"{group}={path.stem}"


def test_the_help_of_infer_shows_song_and_sampler() -> None:
    text = help_page("infer.py", "song.caption=a b")
    assert "song.task=repaint" in text
    assert "  sampler: checkpoint, sft, turbo, upstream\n" in text
    assert "\n  # text description: style" in text
    assert "\n  caption: a b\n" in text
    assert "\n# songs at a time: changes the speed, not the music\nbatch_size: 1\n" in text
    assert "experiment" not in text


@pytest.mark.parametrize("arguments", [[], ["experiment=xl_lora"], ["task=planner", "language=scratch"]])
def test_the_help_of_train_loads_no_network(arguments: list[str]) -> None:
    text = help_page("train.py", *arguments)
    assert "\n  # steps of the linear rise from 0 to the peak.\n  warmup: 100\n" in text


@pytest.mark.parametrize("arguments", [[], ["metrics=available", "guidance=apg"]])
def test_the_help_of_evaluate_loads_no_network(arguments: list[str]) -> None:
    assert "\n# the same folder again" in help_page("evaluate.py", *arguments)


@pytest.mark.parametrize(("program", "option"), list(options()), ids=lambda value: value)
def test_every_key_has_a_sentence_and_null_is_explained(program: str, option: str) -> None:
    schema.register()
    _, entries = help_entries(CONFIGS, program, [*PROGRAMS[program], option])
    assert [entry.path for entry in entries if _is_unexplained(entry)] == []


def _is_unexplained(entry: HelpEntry) -> bool:
    if entry.path.endswith("_target_"):
        return False
    return not entry.text or (entry.value is None and not {"null", "default"} & set(re.findall(r"\w+", entry.text)))


@pytest.mark.parametrize("dotted", CLASSES)
def test_source_files_say_what_the_classes_are(dotted: str) -> None:
    typed = OmegaConf.to_container(OmegaConf.structured(node(get_class(dotted))), enum_to_str=True)
    try:
        assert source.defaults(dotted) == typed
    except source.NotStaticError:
        assert dotted in COMPUTED


def test_every_field_of_every_schema_is_listed_with_a_sentence() -> None:
    for (group, name), fields in schema_fields().items():
        assert [field.name for field in fields if not field.text] == [], (group, name)
    shift = next(field for field in schema_fields()["schedule", "shifted"] if field.name == "shift")
    assert (shift.annotation, shift.default) == ("float", 3.0)


@pytest.mark.parametrize("module", ["acestep.config.top_level", "acestep.config.run"])
def test_keys_are_checked_before_torch_is_loaded(module: str) -> None:
    code = f"import sys, {module}; sys.exit(bool(set({HEAVY!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_a_song_is_made_without_lightning() -> None:
    code = "import sys, acestep.cli.generate, acestep.config.run; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_sentences_of_base_classes_are_inherited() -> None:
    texts = source.texts("acestep.cli.plan_songs.Planning")
    assert texts["edit"].startswith("write each plan to NAME.plan.yaml")
    assert texts["path"].startswith("Hugging Face folder of the language model")
    assert source.texts("acestep.songs.song.Request").keys() > source.texts("acestep.songs.song.Song").keys() >= {"bpm"}
