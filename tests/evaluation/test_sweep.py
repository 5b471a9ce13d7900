"""Sweeps: every combination, checked by the objects themselves."""

from __future__ import annotations

import json

import pytest

from acestep.evaluation.sweep import cells_of
from acestep.flow import APG, CFG, Euler, Heun, Linear, NoGuidance, Sampler
from acestep.types import AdapterUse

BASE = Sampler(schedule=Linear(steps=4), guidance=CFG(scale=2.0))


def test_without_values_there_is_the_sampler_itself():
    (cell,) = cells_of(BASE, {"guidance": {"scale": None}, "schedule": {"steps": None}})
    assert cell.sampler is BASE
    assert cell.settings == {}


def test_every_combination_and_nothing_else_changes():
    cells = cells_of(BASE, {"guidance": {"scale": [1.0, 4.0]}, "schedule": {"steps": [2, 8]}})
    assert [cell.label for cell in cells] == [
        "guidance.scale=1, schedule.steps=2",
        "guidance.scale=1, schedule.steps=8",
        "guidance.scale=4, schedule.steps=2",
        "guidance.scale=4, schedule.steps=8",
    ]
    assert cells[3].sampler == Sampler(schedule=Linear(steps=8), guidance=CFG(scale=4.0))
    assert cells_of(Sampler(guidance=APG(momentum=-0.5)), {"guidance": {"scale": 3.0}})[0].sampler.guidance == APG(
        scale=3.0, momentum=-0.5
    )


def test_fields_that_are_not_there_and_values_that_are_not_allowed():
    with pytest.raises(ValueError, match=r"sweep.guidance.scale: NoGuidance has no field scale"):
        cells_of(Sampler(guidance=NoGuidance()), {"guidance": {"scale": [1.0]}})
    with pytest.raises(ValueError, match=r"sweep.guidence.scale: Sampler has no field guidence"):
        cells_of(BASE, {"guidence": {"scale": [1.0]}})
    with pytest.raises(ValueError, match=r"guidance.scale=0.5"):
        cells_of(BASE, {"guidance": {"scale": [0.5]}})


@pytest.mark.parametrize("value", ["x", ["a"]])
def test_values_of_another_kind_are_refused(value: object):
    with pytest.raises(ValueError, match=r"sweep.guidance.scale=.*: not of the kind that CFG.scale takes"):
        cells_of(Sampler(guidance=CFG()), {"guidance": {"scale": [value]}})


def test_adapters_are_swept_as_part_of_what_is_asked_for():
    none, half = cells_of(BASE, {"adapters": [[], [{"path": "style", "scale": 0.5}]]})
    assert (none.label, half.label) == ("adapters=none", "adapters=style x 0.5")
    assert none.song == {"adapters": ()}
    assert half.song == {"adapters": (AdapterUse(path="style", scale=0.5),)}
    assert half.sampler == BASE
    with pytest.raises(ValueError, match=r"sweep\.adapters: style is no list of adapters"):
        cells_of(BASE, {"adapters": ["style"]})


def test_whole_parts_and_lengths_are_swept_too():
    cells = cells_of(BASE, {"guidance": [CFG(scale=4.0), APG()], "song": {"seconds": [30.0, 120.0]}})
    assert [cell.label for cell in cells] == [
        "guidance=CFG scale=4, song.seconds=30",
        "guidance=CFG scale=4, song.seconds=120",
        "guidance=APG, song.seconds=30",
        "guidance=APG, song.seconds=120",
    ]
    assert cells[2].sampler == Sampler(schedule=Linear(steps=4), guidance=APG())
    assert cells[3].song == {"seconds": 120.0}
    json.dumps([cell.settings for cell in cells])
    assert [cell.sampler.solver for cell in cells_of(BASE, {"solver": [Euler(), Heun()]})] == [Euler(), Heun()]
    with pytest.raises(ValueError, match=r"sweep\.guidance\.scale=\[\]: need at least one value; null leaves"):
        cells_of(BASE, {"guidance": {"scale": []}})
    with pytest.raises(ValueError, match=r"sweep.song.lenght: a song has no lenght"):
        cells_of(BASE, {"song": {"lenght": [1]}})
