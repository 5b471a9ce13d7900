"""Points of a sweep: every combination, validated by the dataclasses."""

from __future__ import annotations

import json

import pytest

from acestep.evaluation.sweep import sweep_points
from acestep.flow import APG, CFG, Euler, Heun, Linear, NoGuidance, Sampler
from acestep.songs import AdapterUse

BASE = Sampler(schedule=Linear(steps=4), guidance=CFG(scale=2.0))


def test_without_values_there_is_one_point():
    (point,) = sweep_points(BASE, {"guidance": {"scale": None}, "schedule": {"steps": None}})
    assert point.sampler is BASE
    assert point.settings == {}


def test_every_combination_and_nothing_else_changes():
    points = sweep_points(BASE, {"guidance": {"scale": [1.0, 4.0]}, "schedule": {"steps": [2, 8]}})
    assert [point.label for point in points] == [
        "guidance.scale=1, schedule.steps=2",
        "guidance.scale=1, schedule.steps=8",
        "guidance.scale=4, schedule.steps=2",
        "guidance.scale=4, schedule.steps=8",
    ]
    assert points[3].sampler == Sampler(schedule=Linear(steps=8), guidance=CFG(scale=4.0))
    assert sweep_points(Sampler(guidance=APG(momentum=-0.5)), {"guidance": {"scale": 3.0}})[0].sampler.guidance == APG(
        scale=3.0, momentum=-0.5
    )


def test_unknown_fields_and_invalid_values_are_refused():
    with pytest.raises(ValueError, match=r"sweep.guidance.scale: NoGuidance has no field scale"):
        sweep_points(Sampler(guidance=NoGuidance()), {"guidance": {"scale": [1.0]}})
    with pytest.raises(ValueError, match=r"sweep.guidence.scale: Sampler has no field guidence"):
        sweep_points(BASE, {"guidence": {"scale": [1.0]}})
    with pytest.raises(ValueError, match=r"guidance.scale=0.5"):
        sweep_points(BASE, {"guidance": {"scale": [0.5]}})


@pytest.mark.parametrize("value", ["x", ["a"]])
def test_values_of_another_type_are_refused(value: object):
    with pytest.raises(ValueError, match=r"sweep.guidance.scale=.*: has the wrong type for CFG.scale"):
        sweep_points(Sampler(guidance=CFG()), {"guidance": {"scale": [value]}})


def test_adapters_are_swept_as_part_of_the_request():
    none, half = sweep_points(BASE, {"adapters": [[], [{"path": "style", "scale": 0.5}]]})
    assert (none.label, half.label) == ("adapters=none", "adapters=style x 0.5")
    assert none.song == {"adapters": ()}
    assert half.song == {"adapters": (AdapterUse(path="style", scale=0.5),)}
    assert half.sampler == BASE
    with pytest.raises(ValueError, match=r"sweep\.adapters: style is no list of adapters"):
        sweep_points(BASE, {"adapters": ["style"]})


def test_components_and_durations_are_swept():
    points = sweep_points(BASE, {"guidance": [CFG(scale=4.0), APG()], "song": {"seconds": [30.0, 120.0]}})
    assert [point.label for point in points] == [
        "guidance=CFG scale=4, song.seconds=30",
        "guidance=CFG scale=4, song.seconds=120",
        "guidance=APG, song.seconds=30",
        "guidance=APG, song.seconds=120",
    ]
    assert points[2].sampler == Sampler(schedule=Linear(steps=4), guidance=APG())
    assert points[3].song == {"seconds": 120.0}
    json.dumps([point.settings for point in points])
    assert [point.sampler.solver for point in sweep_points(BASE, {"solver": [Euler(), Heun()]})] == [Euler(), Heun()]
    with pytest.raises(ValueError, match=r"sweep\.guidance\.scale=\[\]: need at least one value; null leaves"):
        sweep_points(BASE, {"guidance": {"scale": []}})
    with pytest.raises(ValueError, match=r"sweep.song.lenght: a song has no lenght"):
        sweep_points(BASE, {"song": {"lenght": [1]}})
