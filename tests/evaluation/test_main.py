"""``evaluate.py`` from the command line to the page: a folder for each run of a multirun, and all that can be heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

pytestmark = pytest.mark.slow

Captured = pytest.CaptureFixture[str]


def few(tiny: Path) -> list[str]:
    """One step for each of two songs."""
    return [f"weights={tiny}", "eval.prompts.songs=2", "schedule.steps=1", "eval.songs_in_report=0"]


def test_every_run_of_a_multirun_says_what_it_is_and_is_not_done_twice(tiny: Path, tmp_path: Path, capfd: Captured):
    words = ["-m", *few(tiny), "guidance.scale=1,2", "eval.ceiling=false", f"hydra.sweep.dir={tmp_path}"]
    assert call("evaluate", *words) == 0
    told = capfd.readouterr().err
    scales = {page.parent: _scale(page.parent) for page in tmp_path.glob("*/report.html")}
    assert sorted(scales.values()) == [1, 2]
    for folder, scale in scales.items():
        line = next(line for line in told.splitlines() if line.startswith(f"{folder}: "))
        assert f"guidance.scale={scale} " in line
    assert "#1" not in told, "Hydra's own lines"
    assert call("evaluate", *words) == 0
    told = capfd.readouterr().err.splitlines()
    assert told == [f"{folder}: finished before" for folder in sorted(scales, key=scales.__getitem__)]


def _scale(folder: Path) -> int:
    return json.loads((folder / "run.json").read_text())["config"]["guidance"]["scale"]


def test_all_that_can_be_heard_is_and_what_is_missing_is_told_once(tiny: Path, tmp_path: Path, capfd: Captured):
    assert call("evaluate", *few(tiny), "metrics=available", f"out={tmp_path}") == 0
    told = capfd.readouterr()
    missing = [line for line in told.err.splitlines() if line.startswith("left out: ")]
    assert len({line.partition(": ")[2].partition(": ")[2] for line in missing}) == len(missing) > 3
    assert next(line for line in missing if "laion_clap=" in line).startswith("left out: clap, fad, fad_song, kad,")
    summary = json.loads((tmp_path / "summary.json").read_text())
    heard = {column.partition(".")[0] for column in summary["cells"][0]["scores"]}
    assert {"tempo", "key", "duration", "signal", "adherence"} <= heard
    assert "fad_mel" in told.out
    assert (tmp_path / "report.html").is_file()
