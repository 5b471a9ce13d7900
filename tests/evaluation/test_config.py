"""Every evaluation in ``configs/eval`` composes to a callable, and every sweep to sweep points."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call
from hydra import compose, initialize_config_dir

from acestep.config import schema
from acestep.config.run import CONFIGS, build
from acestep.evaluation.metrics import Metric
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.sweep import sweep_points
from acestep.flow import CFG, Sampler
from acestep.runs.status import STATUS, RunState, RunStatus

OPTIONS = sorted(path.stem for path in (Path(CONFIGS) / "eval").glob("*.yaml"))
METRICS = sorted(path.stem for path in (Path(CONFIGS) / "metrics").glob("*.yaml"))
# The others are sweeps of training, which set keys of a multirun.
SWEEPS = sorted(
    path.stem for path in (Path(CONFIGS) / "sweep").glob("*.yaml") if "@package _global_" not in path.read_text("utf-8")
)


def evaluation(*overrides: str) -> Evaluation:
    schema.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build(compose("evaluate", ["out=somewhere", *overrides]).eval)


@pytest.mark.parametrize("option", OPTIONS)
def test_evaluations_compose(option: str):
    composed = evaluation(f"eval={option}", "eval.prompts.path=songs")
    assert composed.metrics
    assert composed.prompts.path == "songs"


@pytest.mark.parametrize("option", METRICS)
def test_metrics_compose_and_win_over_an_evaluations_own(option: str):
    """Composing loads no weights: missing ones are reported by ``load``."""
    composed = evaluation(f"metrics={option}", "eval=folder", "eval.prompts.path=songs")
    assert all(isinstance(metric, Metric) for metric in composed.metrics.values())
    assert ("songeval" in composed.metrics) == (option == "available")
    assert composed.available_only
    assert not evaluation("available_only=false").available_only


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweeps_give_points(sweep: str):
    composed = evaluation(f"sweep={sweep}")
    points = sweep_points(Sampler(guidance=CFG()), composed.sweep)
    assert len({point.label for point in points}) == len(points)
    assert sweep == "none" or len(points) > 2


def test_any_field_can_be_swept_and_any_metric_switched_off():
    composed = evaluation("sweep.guidance.scale=[1,4]", "sweep.schedule.steps=[2,8]", "metrics.kad=null")
    assert len(sweep_points(Sampler(guidance=CFG()), composed.sweep)) == 4
    assert composed.metrics["kad"] is None


def test_the_checkpoint_for_laions_library_is_named_once():
    composed = evaluation("eval=folder", "eval.prompts.path=songs", "laion_clap=music.pt")
    assert composed.metrics["clap"].embedder == composed.metrics["fad"].embedder
    assert composed.metrics["clap"].embedder.weights == "music.pt"


def test_a_folder_that_is_another_runs_or_none_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    RunStatus(main="train", overrides=[], state=RunState.finished).write(tmp_path)
    before = (tmp_path / STATUS).read_bytes()
    assert call("evaluate", f"out={tmp_path}") == 1
    assert f"out={tmp_path}: holds a run of train.py; name another folder" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]
    assert (tmp_path / STATUS).read_bytes() == before
    assert call("evaluate", f"out={tmp_path / STATUS}") == 1
    assert (
        f"out={tmp_path / STATUS}: {tmp_path / STATUS} is a file, not a folder; name another" in capfd.readouterr().err
    )
