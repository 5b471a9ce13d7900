"""``--help`` teaches, at once: it loads what it shows, and no network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acestep.config.meanings import explained, meanings

ROOT = Path(__file__).parents[2]


def shown(script: str, *arguments: str, without: tuple[str, ...]) -> str:
    """What ``script --help`` prints in a process of its own, which must not load ``without``."""
    code = f"""
import runpy, sys
sys.argv = ["{script}", *{arguments!r}, "--help"]
try:
    runpy.run_path("{script}", run_name="__main__")
except SystemExit as stopped:
    assert not stopped.code, stopped.code
assert not set({without!r}) & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_of_infer_loads_no_network() -> None:
    text = shown("infer.py", "song.caption=a b", without=("torch", "lightning", "transformers"))
    assert "song.task=repaint" in text
    assert "  sampler: own, sft, turbo, upstream\n" in text
    assert "\n  # the music in words: style" in text
    assert "\n  caption: a b\n" in text
    assert "\n# songs at a time: changes the speed, not the music\nbatch_size: 1\n" in text
    assert "experiment" not in text


def test_keys_are_checked_before_torch_is_there() -> None:
    code = "import sys, acestep.config.keys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_a_song_is_made_without_lightning() -> None:
    code = "import sys, acestep.cli.generate, acestep.config.run; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_keys_are_explained_by_their_classes_and_what_those_extend() -> None:
    found = meanings("acestep.cli.plan_songs.Planning")
    assert found["edit"].startswith("write each plan to NAME.plan.yaml and stop")
    assert found["path"] == "Hugging Face folder of the language model."
    assert (
        meanings("acestep.songs.song.Request").keys() > meanings("acestep.songs.song.Song").keys() >= {"caption", "bpm"}
    )
    page = {"a": {"_target_": "acestep.planner.document.Rules", "bpm": [30, 300]}, "bpm": 1, "weights": "${x}"}
    shown = explained(page, ROOT / "configs" / "infer.yaml").splitlines()
    assert shown[2:4] == ["  # slowest and fastest tempo.", "  bpm: [30, 300]"]
    assert shown[4] == "bpm: 1"
    assert shown[5].startswith("# a shipped name, a checkpoint folder")
    assert explained({"resume": "auto"}, ROOT / "configs" / "train.yaml").startswith("# auto: a run folder that is")
