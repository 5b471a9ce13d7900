"""Plans judged: against their songs, and against what a plan may say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from acestep.evaluation.metrics.core import OracleAdherence
from acestep.evaluation.planner_study import PlannerStudy, compared, flaws, truth_of, valid_plans
from acestep.evaluation.prompts import MicroPrompts
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.document import Rules
from acestep.planner.plan import Plan, PlannerConfig
from acestep.synth import draw_song
from acestep.types import Song

FULL = Song(caption="bells", seconds=2.0, bpm=90, key="C major", time_signature="4", language="en")


def test_plans_of_a_random_language_model_are_whole() -> None:
    assert valid_plans(50) == 50


@pytest.mark.parametrize(
    ("changes", "codes", "found"),
    [
        ({}, range(10), []),
        ({"bpm": 20}, range(10), ["bpm"]),
        ({"key": "H major"}, range(10), ["keyscale"]),
        ({"caption": ""}, range(10), ["caption"]),
        ({}, range(9), ["count of codes"]),
        ({}, range(1, 11), ["codes"]),
    ],
)
def test_what_breaks_the_rules_is_named(changes: dict, codes: range, found: list[str]) -> None:
    song = replace(FULL, **changes)
    assert flaws(Plan(song, song, tuple(codes)), Rules(seconds=(1, 3)), codes=10) == found


def test_a_plan_is_compared_with_its_song_where_that_says_something() -> None:
    plan = Plan(FULL, replace(FULL, bpm=91))
    assert compared([replace(FULL, key=None)], [plan]) == {"bpm": [0.0], "timesignature": [1.0], "language": [1.0]}


def test_the_truth_of_a_plan_is_its_own_tempo_and_key() -> None:
    truth = json.dumps(draw_song(0, 0)[0].as_dict())
    told = json.loads(truth_of(truth, replace(FULL, bpm=108, key="Bb minor")))
    assert (told["beat_frames"], told["tonic"], told["mode"]) == (14, "A#", "minor")
    assert json.loads(truth_of(truth, Song())) == json.loads(truth)


@pytest.mark.slow
def test_the_shipped_planner_plans_what_captions_imply_and_its_codes_carry_it(tmp_path: Path) -> None:
    prompts = MicroPrompts(path=str(tmp_path / "world"), songs=8, seed=23_000, annotation="musician")
    study = PlannerStudy(
        prompts=prompts,
        metrics={"adherence": OracleAdherence()},
        planner=PlannerConfig(path="micro_planner"),
        wild=0,
    )
    pipeline = Pipeline.from_pretrained("micro")
    found = study(pipeline, pipeline.sampler, tmp_path / "out").summary()["planner"]
    assert found["metadata_accuracy"] > 0.9
    assert found["difference_ci95"][0] > 0
    assert found["told_in_words"] > 0.9
