"""SIGKILL and SIGTERM to real processes, at random times: the resumed run is bit-identical to an uninterrupted one.

``ACESTEP_KILLS=20`` kills each run twenty times.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from training import jobs

from acestep.adapters import LoRA
from acestep.training.checkpoint import newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.long]

KILLS = int(os.environ.get("ACESTEP_KILLS", "1"))
STEPS = 2 * KILLS + 4
DIT = {"sft": {}, "lora": {"adapter": LoRA(rank=2, alpha=4, dropout=0.2)}}
OTHERS = ("planner", "adapted planner", "tokenizer", "autoencoder")


@pytest.fixture(scope="module")
def kinds(tiny: Path, store: Path, language: Path, trainings: dict[str, tuple]) -> dict[str, tuple]:
    """By name, where a training reads from and its settings.

    Average on, two loader processes, and two batches a step where steps accumulate; 9 songs end epochs in the midst of
    steps.
    """
    common = {"steps": STEPS, "ema": True, "workers": 2}
    twice = {"accumulate": 2, "validate_every": 7}
    found = {name: ((tiny, store), {"trainer": twice, **kind}) for name, kind in DIT.items()}
    for name, (places, kind) in trainings.items():
        found[name] = places, {"trainer": twice, **kind}
    found["adapted planner"][1]["task"] = jobs.adapted(language, dropout=0.2)
    return {name: (places, common | kind) for name, (places, kind) in found.items()}


@pytest.fixture(scope="module")
def uninterrupted(kinds: dict[str, tuple], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of each kind that nothing has stopped."""

    @cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        places, settings = kinds[kind]
        assert jobs.run(1, folder, places, **settings) == [0]
        return folder

    return made


def assert_same_bits(one: Path, other: Path) -> None:
    there, here = torch.load(one / jobs.FINAL), torch.load(other / jobs.FINAL)
    assert there.keys() == here.keys()
    assert all(torch.equal(here[name], value) for name, value in there.items())


@pytest.mark.parametrize("kind", [*DIT, *OTHERS])
def test_run_killed_repeatedly_equals_uninterrupted_run(
    kind: str, uninterrupted: Callable[[str], Path], kinds: dict[str, tuple], tmp_path: Path
) -> None:
    whole, broken, chance = uninterrupted(kind), tmp_path / "broken", random.Random(kind)
    places, settings = kinds[kind]
    for kill in range(KILLS):
        # Checkpoints come at every second step, so that each attempt leaves one more.
        death = jobs.DieAfter(chance.choice([2, 3]), seed=kill)
        assert jobs.run(1, broken, places, callbacks=[death], **settings) == [-signal.SIGKILL]
    assert jobs.run(1, broken, places, **settings) == [0]
    assert_same_bits(whole, broken)
    assert jobs.curve(broken) == jobs.curve(whole)


def test_terminated_run_saves_and_resumes(
    uninterrupted: Callable[[str], Path], kinds: dict[str, tuple], tmp_path: Path
) -> None:
    places, settings = kinds["sft"]
    assert jobs.run(1, tmp_path, places, callbacks=[jobs.TermAt(2)], **settings) == [0]
    stopped = newest_checkpoint(tmp_path)
    assert stopped.name == "stopped.ckpt"
    assert torch.load(stopped, weights_only=True)["global_step"] == 3
    assert jobs.run(1, tmp_path, places, **settings) == [0]
    assert not stopped.exists()
    assert_same_bits(uninterrupted("sft"), tmp_path)
