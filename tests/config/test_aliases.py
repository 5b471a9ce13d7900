"""Former names of keys, options and classes: replaced wherever they are given or recorded, with one warning each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.utils import get_class

from acestep.config import aliases
from acestep.config.run import compose_config
from acestep.config.run_dir import identity

FORMER_CLASSES = (Path(__file__).parent / "former_classes.txt").read_text(encoding="utf-8").split()
"""Every class that a config of the first release could name."""
TINY = ("model=tiny", "weights=W", "data.path=D")


@pytest.fixture(autouse=True)
def _no_warning_yet() -> Iterator[None]:
    aliases._warned.clear()
    yield
    aliases._warned.clear()


@pytest.mark.parametrize("former", FORMER_CLASSES)
def test_former_classes_are_found(former: str) -> None:
    assert isinstance(get_class(aliases.rename_target(former)), type)


@pytest.mark.parametrize(
    ("former", "word"),
    [
        ("guidance=own", "guidance=checkpoint"),
        ("guidance=own,cfg", "guidance=checkpoint,cfg"),
        ("data.untold=0.2", "data.metadata_dropout=0.2"),
        ("+data.untold=0.2", "+data.metadata_dropout=0.2"),
        ("callbacks.watch.every=1", "callbacks.monitor.every=1"),
        ("~callbacks.watch", "~callbacks.monitor"),
        ("task.curriculum.listen=0.1", "task.example_mix.captioning=0.1"),
        (
            "callbacks.watch._target_=acestep.training.callbacks.Watch",
            "callbacks.monitor._target_=acestep.training.callbacks.TrainingMonitor",
        ),
        (
            "data.captions=[{_target_: acestep.data.captions.OwnTag, tag: a}]",
            "data.captions=[{_target_: acestep.data.captions.DatasetTag, tag: a}]",
        ),
        ("song.caption='a song of my own'", "song.caption='a song of my own'"),
        ("weights=own", "weights=own"),
        ("--multirun", "--multirun"),
    ],
)
def test_words_are_renamed(former: str, word: str) -> None:
    assert aliases.rename_words([former]) == [word]


def test_each_former_name_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    aliases.rename_words(["guidance=own", "data.untold=0.2"])
    aliases.rename_words(["guidance=own", "data.untold=0.3"])
    assert capsys.readouterr().err.splitlines() == [
        "warning: guidance=own has a new name; use guidance=checkpoint",
        "warning: data.untold has a new name; use data.metadata_dropout",
    ]


def test_recorded_configs_are_renamed_and_back() -> None:
    recorded = {
        "task": {"_target_": "acestep.training.jobs.PlannerTask", "judged": 2, "curriculum": {"listen": 0.1}},
        "data": {"_target_": "acestep.training.data.DataConfig", "untold": 0.2},
        "callbacks": {"watch": {"_target_": "acestep.training.watch.WatchParts"}},
    }
    renamed = aliases.rename_recorded(recorded)
    assert renamed == {
        "task": {
            "_target_": "acestep.training.tasks.PlannerTask",
            "validation_plans": 2,
            "example_mix": {"captioning": 0.1},
        },
        "data": {"_target_": "acestep.training.datamodule.DataConfig", "metadata_dropout": 0.2},
        "callbacks": {"monitor": {"_target_": "acestep.training.callbacks.TrainingMonitor"}},
    }
    assert recorded["data"]["untold"] == 0.2
    assert aliases.first_names(renamed) == recorded


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "53e7afc1"),
        (["adapter=lora"], "90216654"),
        (["experiment=micro_planner"], "8fc7c581"),
        (["experiment=micro_tokenizer"], "b3f115d6"),
        (["experiment=autoencoder_scratch"], "edeb393a"),
    ],
)
def test_a_trainings_identity_is_that_of_the_first_release(overrides: list[str], expected: str) -> None:
    assert identity(compose_config("train", [*TINY, *overrides])) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "4f42dd5d"),
        (["guidance=cfg", "sweep=cfg"], "4fd371fa"),
        (["eval=folder", "eval.prompts.path=D"], "c664c998"),
    ],
)
def test_an_evaluations_identity_is_that_of_the_first_release(overrides: list[str], expected: str) -> None:
    assert identity(compose_config("evaluate", ["out=O", *overrides])) == expected


def test_former_names_work_in_a_users_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        """# @package _global_
defaults:
  - override /guidance: own
  - override /sampler: own
metrics: {mine: {_target_: acestep.evaluation.signal.SignalHealth}}
"""
    )
    words = ["out=O", f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    cfg = compose_config("evaluate", words)
    assert cfg.guidance == {"scale": None, "t_min": None, "t_max": None}
    assert cfg.clean_last is None
    assert cfg.metrics.mine._target_ == "acestep.evaluation.metrics.SignalHealth"
    assert "acestep.evaluation.signal.SignalHealth has a new name" in capsys.readouterr().err
