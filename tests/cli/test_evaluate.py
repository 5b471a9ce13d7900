"""``evaluate.py`` from the command line to the page: a folder for each run of a multirun, and all that can be heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

from acestep.audio.audio import read_audio
from acestep.evaluation.joined import named_results, read_results
from acestep.evaluation.report.html import write_comparison
from acestep.evaluation.samples import fingerprint
from acestep.modes import FIXED
from acestep.pipeline.pipeline import Pipeline

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


def test_8_bits_make_songs_of_their_own_near_the_full_ones(tiny: Path, tmp_path: Path, capfd: Captured):
    words = [*few(tiny), "eval.ceiling=false", "metrics.kad=null", "metrics.coverage=null", f"out={tmp_path}"]
    paths, records, titles = {}, {}, []
    for mode in ("full", "int8"):
        assert call("evaluate", *words, f"memory={mode}") == 0
        paths[mode] = [row.path for row in read_results(tmp_path).rows]
        titles.append(_title(tmp_path / "report.html"))
        records[mode] = json.loads((tmp_path / "run.json").read_text())
    assert titles[1] == f"{titles[0]}, memory=int8"
    assert not set(paths["int8"]) & set(paths["full"])
    assert [record["config"]["memory"] for record in records.values()] == list(records)
    assert len({record["identity"] for record in records.values()}) == 2
    full, int8 = ([read_audio(path).samples for path in paths[mode]] for mode in ("full", "int8"))
    for song, near in zip(full, int8, strict=True):
        assert 0 < (near - song).norm() / song.norm() < 0.1
    capfd.readouterr()
    assert call("evaluate", *words, "memory=auto") == 1
    assert "error: memory=auto: need full, offload, int8, int8_offload or fp8; what is free" in capfd.readouterr().err


def _title(report: Path) -> str:
    return report.read_text(encoding="utf-8").partition("<title>")[2].partition("</title>")[0]


def test_a_report_of_several_modes_names_each(tiny: Path, tmp_path: Path):
    words = ["-m", *few(tiny), "eval.ceiling=false", "metrics.kad=null", "metrics.coverage=null"]
    assert call("evaluate", *words, "memory=full,int8", f"hydra.sweep.dir={tmp_path / 'runs'}") == 0
    folders = [page.parent for page in (tmp_path / "runs").glob("*/report.html")]
    names = list(named_results(folders))
    assert [name.endswith(", memory=int8") for name in names] == [
        read_results(f).setting.memory == "int8" for f in folders
    ]
    assert sorted(name.count("memory=int8") for name in names) == [0, 1]
    write_comparison(folders, tmp_path / "joined", songs=1)
    assert ", memory=int8" in (tmp_path / "joined" / "report.html").read_text(encoding="utf-8")


def test_what_is_stored_otherwise_has_another_fingerprint(tiny: Path):
    found = {mode.value: fingerprint(Pipeline.from_pretrained(tiny, memory=mode)) for mode in FIXED}
    assert found["full"] == found["offload"], "offloading changes no number"
    assert found["int8"] == found["int8_offload"]
    assert len(set(found.values())) == 3
