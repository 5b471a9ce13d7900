"""Comparison of plans with their songs, and with the rules of the grammar."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from acestep.evaluation.metrics import OracleAdherence
from acestep.evaluation.planner_study import (
    PlannerStudy,
    count_valid_plans,
    field_matches,
    planned_truth,
    rule_violations,
)
from acestep.evaluation.prompts import MicroPrompts
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.grammar import Rules
from acestep.planner.plan import PlannerConfig, SongPlan
from acestep.songs import Song
from acestep.synth import draw_song

FULL = Song(caption="bells", seconds=2.0, bpm=90, key="C major", time_signature="4", language="en")


def test_plans_of_a_random_language_model_are_valid() -> None:
    assert count_valid_plans(50) == 50


@pytest.mark.parametrize(
    ("changes", "codes", "violations"),
    [
        ({}, range(10), []),
        ({"bpm": 20}, range(10), ["bpm"]),
        ({"key": "H major"}, range(10), ["keyscale"]),
        ({"caption": ""}, range(10), ["caption"]),
        ({}, range(9), ["count of codes"]),
        ({}, range(1, 11), ["codes"]),
    ],
)
def test_rule_violations_are_named(changes: dict, codes: range, violations: list[str]) -> None:
    song = replace(FULL, **changes)
    assert rule_violations(SongPlan(song, song, tuple(codes)), Rules(seconds=(1, 3)), codes=10) == violations


def test_a_plan_is_compared_with_its_song_in_the_fields_that_the_song_has() -> None:
    plan = SongPlan(FULL, replace(FULL, bpm=91))
    assert field_matches([replace(FULL, key=None)], [plan]) == {"bpm": [0.0], "timesignature": [1.0], "language": [1.0]}


def test_the_truth_of_a_plan_has_its_tempo_and_key() -> None:
    truth = json.dumps(asdict(draw_song(0, 0)[0]))
    truth_of_plan = json.loads(planned_truth(truth, replace(FULL, bpm=108, key="Bb minor")))
    assert (truth_of_plan["beat_frames"], truth_of_plan["tonic"], truth_of_plan["mode"]) == (14, "A#", "minor")
    assert json.loads(planned_truth(truth, Song())) == json.loads(truth)


@pytest.mark.slow
def test_the_shipped_planner_plans_what_captions_imply_and_its_codes_carry_it(tmp_path: Path) -> None:
    prompts = MicroPrompts(path=str(tmp_path / "world"), songs=8, seed=23_000, annotation="musician")
    study = PlannerStudy(
        prompts=prompts,
        metrics={"adherence": OracleAdherence()},
        planner=PlannerConfig(path="micro_planner"),
        random_plans=0,
    )
    pipeline = Pipeline.from_pretrained("micro")
    summary = study(pipeline, pipeline.sampler, tmp_path / "out").summary()["planner"]
    assert summary["metadata_accuracy"] > 0.9
    assert summary["difference_ci95"][0] > 0
    assert summary["told_in_words"] > 0.9
