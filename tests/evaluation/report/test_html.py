"""Finished evaluations side by side, told on one page and at Weights & Biases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from acestep.__main__ import main
from acestep.evaluation.joined import named_results, read_results
from acestep.evaluation.report.comparison import differences, side_by_side
from acestep.evaluation.report.wandb import log_to_wandb, rows_of
from acestep.evaluation.results import Results, comparable
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.sweep import CEILING
from acestep.pipeline.pipeline import Pipeline


@pytest.fixture(scope="module")
def other_out(evaluation: Evaluation, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second evaluation of the same prompts, at one other scale."""
    folder = tmp_path_factory.mktemp("others") / "whole"
    at_two = replace(evaluation, sweep={"guidance": {"scale": [2.0]}}, ceiling=False)
    at_two(pipeline, pipeline.sampler, folder).write(folder)
    return folder


def test_evaluations_are_named_by_what_tells_them_apart(whole_out: Path, other_out: Path, whole: Results):
    assert list(named_results([whole_out])) == [whole_out.name]
    namesake = named_results([other_out, other_out.parent / "." / "whole"])
    assert list(namesake) == ["whole"], "one folder is one evaluation"


def test_each_at_its_best_and_paired_by_prompt(whole: Results, other_out: Path):
    other = read_results(other_out)
    found = differences({"first": whole, "second": other})
    assert {(one.column, one.name) for one in found} == {("adherence.mean", "second"), ("clap.of_mean", "second")}
    (clap,) = (one for one in found if one.column == "clap.of_mean")
    best = whole.interval("clap.of_mean", whole.best("clap.of_mean"))
    assert clap.change["mean"] == pytest.approx(other.interval("clap.of_mean", other.cells[0]).mean - best.mean)
    assert clap.change["n"] == 5
    page = side_by_side({"first": whole, "<second>": other})
    assert "&lt;second&gt;" in page
    assert "guidance.scale=2" in page
    assert side_by_side({"first": whole}) == ""


def test_scores_of_another_scorer_are_not_compared(whole: Results):
    ears = {**whole.setting.ears, "clap": "clap-other 0123"}
    foreign = replace(whole, setting=replace(whole.setting, ears=ears))
    assert comparable("adherence.mean", whole, foreign)
    assert not comparable("clap.of_mean", whole, foreign)
    assert [one.column for one in differences({"a": whole, "b": foreign})] == ["adherence.mean"]
    assert "another scorer" in side_by_side({"a": whole, "b": foreign})


def test_the_command_writes_one_page(
    whole: Results, whole_out: Path, other_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["report", str(whole_out), str(other_out), "--out", str(tmp_path), "--songs", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Side by side" in page
    # One prompt: two scales, the other evaluation, the recording.
    assert page.count("<audio") == 4
    assert (tmp_path / "plots" / "compared.svg").is_file()
    assert main(["report", str(whole_out), str(other_out)]) == 1
    assert "--out: not given" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "no finished evaluation" in capsys.readouterr().err


def test_every_cell_has_a_hash_of_all_that_decided_it(whole: Results, other_out: Path):
    hashes = {cell["label"]: cell["sha256"] for cell in whole.summary()["cells"]}
    assert len(set(hashes.values())) == 2
    other = read_results(other_out)
    assert other.decided_by("guidance.scale=2") not in hashes.values()
    again = replace(other, setting=replace(other.setting, ears={**other.setting.ears, "clap": "another"}))
    assert again.decided_by("guidance.scale=2") != other.decided_by("guidance.scale=2")


@pytest.mark.slow
def test_weights_and_biases_gets_every_song_and_the_report(
    whole: Results, whole_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb", reason="an extra")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    columns, rows = rows_of(whole)
    assert len(rows) == 10
    assert {"prompt", "cell", "caption", "adherence.mean", "clap.of_mean"} <= set(columns)
    report = tmp_path / "report.html"
    report.write_text("<html></html>")
    log_to_wandb(whole, report, "trial")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (table,) = run.rglob("songs_*.table.json")
    kept = json.loads(table.read_text())
    assert kept["columns"] == [*columns, "audio"]
    assert [row[: len(columns)] for row in kept["data"]] == rows
    staged = {path.read_bytes() for path in (tmp_path / "staged").rglob("*") if path.is_file()}
    assert {row.path.read_bytes() for row in whole.rows if row.cell != CEILING} <= staged
    assert list(run.rglob("report_*.html"))
