"""The stored ablation belongs to the shipped experiment, and differences from it are reported."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from acestep.config import schema
from acestep.config.run import CONFIGS
from benchmarks.cfg_dropout import differences, draw

STORED = Path(__file__).parents[2] / "docs" / "cfg_dropout.json"


@pytest.fixture
def stored() -> dict:
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_the_shipped_sweep_is_the_one_that_is_documented(stored: dict) -> None:
    schema.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        given = ["experiment=micro_cfg_dropout", "sweep=cfg_dropout", "data.path=store"]
        cfg = compose("train", given, return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    swept = str(cfg.hydra.sweeper.params["objective.dropout.rate"])
    assert [float(rate) for rate in swept.split(",")] == [row["rate"] for row in stored["rates"]]
    assert cfg.trainer.max_steps == stored["steps"]


def test_differences_are_reported_and_other_settings_refused(stored: dict) -> None:
    assert differences(stored, stored) == []
    strayed = deepcopy(stored)
    strayed["rates"][1]["curve"][0]["adherence"] += 2 * stored["tolerance"]["adherence"]
    strayed["rates"][2]["loss_null"] *= 1 + 2 * stored["tolerance"]["loss"]
    assert [line.partition(" is ")[0] for line in differences(strayed, stored)] == [
        f"rate {stored['rates'][1]['rate']:g}, scale {stored['rates'][1]['curve'][0]['scale']:g}: adherence",
        f"rate {stored['rates'][2]['rate']:g}: loss_null",
    ]
    with pytest.raises(ValueError, match=r"check: base is other"):
        differences(stored | {"base": "other"}, stored)


def test_the_figure_has_a_curve_for_each_rate(stored: dict) -> None:
    (axes,) = draw(stored).axes
    assert [text.get_text() for text in axes.get_legend().texts] == [f"p = {row['rate']:g}" for row in stored["rates"]]
    for line, row in zip(axes.lines, stored["rates"], strict=True):
        assert list(line.get_ydata()) == [point["adherence"] for point in row["curve"]]


def test_dropout_rates_are_as_configured(stored: dict) -> None:
    songs = stored["steps"] * 8
    for row in stored["rates"]:
        assert abs(row["realised"] - row["rate"]) <= 5 * (row["rate"] * (1 - row["rate"]) / songs) ** 0.5
