"""SIGKILL and SIGTERM to real processes, at any moment: what comes of it has the uninterrupted run's bits.

``ACESTEP_KILLS=20`` kills each run twenty times.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from training import jobs

from acestep.adapters import LoRA
from acestep.config.folder import newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.long]

KILLS = int(os.environ.get("ACESTEP_KILLS", "1"))
STEPS = 2 * KILLS + 4
KINDS = {"sft": {}, "lora": {"adapter": LoRA(rank=2, alpha=4, dropout=0.2)}}


def settings(kind: str) -> dict[str, Any]:
    """Average on, two batches a step, two loader processes; 9 songs end epochs in the midst of steps."""
    trainer = {"accumulate": 2, "validate_every": 7}
    return {"steps": STEPS, "ema": True, "trainer": trainer, "workers": 2, **KINDS[kind]}


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of each kind that nothing has stopped."""

    @cache
    def made(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        assert jobs.run(1, folder, (tiny, store), **settings(kind)) == [0]
        return folder

    return made


def assert_same_bits(one: Path, other: Path) -> None:
    there, here = torch.load(one / jobs.FINAL), torch.load(other / jobs.FINAL)
    assert there.keys() == here.keys()
    assert all(torch.equal(here[name], value) for name, value in there.items())


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_it_ends_as_if_never(
    kind: str, uninterrupted: Callable[[str], Path], tiny: Path, store: Path, tmp_path: Path
) -> None:
    whole, broken, chance = uninterrupted(kind), tmp_path / "broken", random.Random(kind)
    for kill in range(KILLS):
        # Checkpoints come at every second step, so that each attempt leaves one more.
        death = jobs.DieAfter(chance.choice([2, 3]), seed=kill)
        assert jobs.run(1, broken, (tiny, store), callbacks=[death], **settings(kind)) == [-signal.SIGKILL]
    assert jobs.run(1, broken, (tiny, store), **settings(kind)) == [0]
    assert_same_bits(whole, broken)
    assert jobs.curve(broken) == jobs.curve(whole)


def test_terminated_it_saves_stops_in_peace_and_goes_on(
    uninterrupted: Callable[[str], Path], tiny: Path, store: Path, tmp_path: Path
) -> None:
    assert jobs.run(1, tmp_path, (tiny, store), callbacks=[jobs.TermAt(2)], **settings("sft")) == [0]
    stopped = newest_checkpoint(tmp_path)
    assert stopped.name == "stopped.ckpt"
    assert torch.load(stopped, weights_only=True)["global_step"] == 3
    assert jobs.run(1, tmp_path, (tiny, store), **settings("sft")) == [0]
    assert not stopped.exists()
    assert_same_bits(uninterrupted("sft"), tmp_path)
