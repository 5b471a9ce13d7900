"""Reports of several evaluations as one HTML page and as a Weights & Biases run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from acestep.__main__ import main
from acestep.evaluation.report.comparison import differences_from_first, side_by_side
from acestep.evaluation.report.wandb import log_to_wandb, song_table
from acestep.evaluation.results import Results, comparable, named_results, read_results
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


def test_evaluations_are_named_by_the_shortest_unique_path(whole_out: Path, other_out: Path, whole: Results):
    assert list(named_results([whole_out])) == [whole_out.name]
    namesake = named_results([other_out, other_out.parent / "." / "whole"])
    assert list(namesake) == ["whole"], "one folder is one evaluation"


def test_differences_are_between_best_points_and_paired_by_prompt(whole: Results, other_out: Path):
    other = read_results(other_out)
    differences = differences_from_first({"first": whole, "second": other})
    assert differences.keys() == {("adherence.mean", "second"), ("clap.of_mean", "second")}
    clap = differences["clap.of_mean", "second"]
    best = whole.interval("clap.of_mean", whole.best("clap.of_mean"))
    assert clap["mean"] == pytest.approx(other.interval("clap.of_mean", other.points[0]).mean - best.mean)
    assert clap["n"] == 5
    page = side_by_side({"first": whole, "<second>": other})
    assert "&lt;second&gt;" in page
    assert "guidance.scale=2" in page
    assert side_by_side({"first": whole}) == ""


def test_scores_of_another_feature_extractor_are_not_compared(whole: Results):
    extractors = {**whole.info.extractors, "clap": "clap-other 0123"}
    foreign = replace(whole, info=replace(whole.info, extractors=extractors))
    assert comparable("adherence.mean", whole, foreign)
    assert not comparable("clap.of_mean", whole, foreign)
    assert list(differences_from_first({"a": whole, "b": foreign})) == [("adherence.mean", "b")]
    assert "another feature extractor" in side_by_side({"a": whole, "b": foreign})


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


def test_point_hash_depends_on_settings_and_extractors(whole: Results, other_out: Path):
    hashes = {point["label"]: point["sha256"] for point in whole.summary()["cells"]}
    assert len(set(hashes.values())) == 2
    other = read_results(other_out)
    assert other.point_hash("guidance.scale=2") not in hashes.values()
    again = replace(other, info=replace(other.info, extractors={**other.info.extractors, "clap": "another"}))
    assert again.point_hash("guidance.scale=2") != other.point_hash("guidance.scale=2")


@pytest.mark.slow
def test_wandb_run_holds_every_song_and_the_report(
    whole: Results, whole_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb", reason="an extra")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    columns, rows = song_table(whole)
    assert len(rows) == 10
    assert {"prompt", "cell", "caption", "adherence.mean", "clap.of_mean"} <= set(columns)
    report = tmp_path / "report.html"
    report.write_text("<html></html>")
    log_to_wandb(whole, report, "trial")
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (table,) = run.rglob("songs_*.table.json")
    logged = json.loads(table.read_text())
    assert logged["columns"] == [*columns, "audio"]
    assert [row[: len(columns)] for row in logged["data"]] == rows
    staged = {path.read_bytes() for path in (tmp_path / "staged").rglob("*") if path.is_file()}
    assert {row.path.read_bytes() for row in whole.rows if row.point != CEILING} <= staged
    assert list(run.rglob("report_*.html"))
