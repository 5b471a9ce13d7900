"""The metrics on trial: the trial runs, and its published result holds what the page says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evaluation, trial

pytestmark = pytest.mark.long

RESULTS = evaluation.HERE / "results" / "evaluation_corruption.json"


@pytest.mark.slow
def test_a_small_trial_is_written_with_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial, "LEVELS", (0.0, 0.5, 1.0))
    evaluation.main(["corruption", "--songs", "4", "--folder", str(tmp_path), "--docs", str(tmp_path)])
    found = json.loads((tmp_path / "evaluation_corruption.json").read_text())
    assert set(found["curves"]) == set(trial.TOLD)
    assert (tmp_path / "corruption.png").is_file()
    assert (tmp_path / "corruption.svg").is_file()
    wrong = found["curves"]["wrong prompt"]
    assert wrong["adherence.mean"][0] > wrong["adherence.mean"][1] > wrong["adherence.mean"][2]
    assert wrong["clap.of_mean"][0] > wrong["clap.of_mean"][2]
    assert found["curves"]["noise"]["fad.fad"][0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.skipif(not RESULTS.is_file(), reason="no published trial: python -m benchmarks.evaluation corruption")
def test_the_published_trial_holds_every_adherence_metric_to_the_truth():
    found = json.loads(RESULTS.read_text())
    assert set(found["rank_correlation"]) == set(trial.TOLD)
    for way, columns in found["rank_correlation"].items():
        for column in columns.keys() & trial.CLAIMS.keys():
            assert columns[column] >= 0.9, f"{column} under {way}"
            lines = found["curves"][way]
            assert columns[column] == pytest.approx(trial.spearman(lines[column], lines[trial.CLAIMS[column][0]]))
