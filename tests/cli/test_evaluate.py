"""``evaluate.py`` from the command line to the report: multiruns, all available metrics, memory modes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call

from acestep.audio.audio import read_audio
from acestep.evaluation.report.html import write_comparison_report
from acestep.evaluation.results import named_results, read_results
from acestep.evaluation.samples import pipeline_fingerprint
from acestep.memory_modes import MEMORY_MODES
from acestep.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.slow

Captured = pytest.CaptureFixture[str]


def few(tiny: Path) -> list[str]:
    """One step for each of two songs."""
    return [f"weights={tiny}", "eval.prompts.songs=2", "schedule.steps=1", "eval.songs_in_report=0"]


def test_runs_of_a_multirun_are_labelled_and_not_repeated(tiny: Path, tmp_path: Path, capfd: Captured):
    words = ["-m", *few(tiny), "guidance.scale=1,2", "eval.ceiling=false", f"hydra.sweep.dir={tmp_path}"]
    assert call("evaluate", *words) == 0
    output = capfd.readouterr().err
    scales = {page.parent: _scale(page.parent) for page in tmp_path.glob("*/report.html")}
    assert sorted(scales.values()) == [1, 2]
    for folder, scale in scales.items():
        line = next(line for line in output.splitlines() if line.startswith(f"{folder}: "))
        assert f"guidance.scale={scale} " in line
    assert "#1" not in output, "Hydra's own lines"
    assert call("evaluate", *words) == 0
    output = capfd.readouterr().err.splitlines()
    assert output == [f"{folder}: finished before" for folder in sorted(scales, key=scales.__getitem__)]


def _scale(folder: Path) -> int:
    return json.loads((folder / "run.json").read_text())["config"]["guidance"]["scale"]


def test_available_metrics_run_and_missing_ones_are_listed_once(tiny: Path, tmp_path: Path, capfd: Captured):
    assert call("evaluate", *few(tiny), "metrics=available", f"out={tmp_path}") == 0
    output = capfd.readouterr()
    missing = [line for line in output.err.splitlines() if line.startswith("left out: ")]
    assert len({line.partition(": ")[2].partition(": ")[2] for line in missing}) == len(missing) > 3
    assert next(line for line in missing if "laion_clap=" in line).startswith("left out: clap, fad, fad_song, kad,")
    summary = json.loads((tmp_path / "summary.json").read_text())
    scored = {column.partition(".")[0] for column in summary["cells"][0]["scores"]}
    assert {"tempo", "key", "duration", "signal", "adherence"} <= scored
    assert "fad_mel" in output.out
    assert (tmp_path / "report.html").is_file()


def test_int8_songs_are_separate_files_close_to_the_full_ones(tiny: Path, tmp_path: Path, capfd: Captured):
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
    assert (
        "error: memory=auto: need full, offload, int8, int8_offload or fp8; auto depends on the memory that is free"
        in capfd.readouterr().err
    )


def _title(report: Path) -> str:
    return report.read_text(encoding="utf-8").partition("<title>")[2].partition("</title>")[0]


def test_a_report_of_several_modes_names_each(tiny: Path, tmp_path: Path):
    words = ["-m", *few(tiny), "eval.ceiling=false", "metrics.kad=null", "metrics.coverage=null"]
    assert call("evaluate", *words, "memory=full,int8", f"hydra.sweep.dir={tmp_path / 'runs'}") == 0
    folders = [page.parent for page in (tmp_path / "runs").glob("*/report.html")]
    names = list(named_results(folders))
    assert [name.endswith(", memory=int8") for name in names] == [
        read_results(f).info.memory == "int8" for f in folders
    ]
    assert sorted(name.count("memory=int8") for name in names) == [0, 1]
    write_comparison_report(folders, tmp_path / "joined", songs=1)
    assert ", memory=int8" in (tmp_path / "joined" / "report.html").read_text(encoding="utf-8")


def test_quantized_pipelines_have_another_fingerprint(tiny: Path):
    found = {mode.value: pipeline_fingerprint(Pipeline.from_pretrained(tiny, memory=mode)) for mode in MEMORY_MODES}
    assert found["full"] == found["offload"], "offloading changes no number"
    assert found["int8"] == found["int8_offload"]
    assert len(set(found.values())) == 3
