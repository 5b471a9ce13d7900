"""The run of ``train.py``'s parts is the bare loop's, number for number. How much slower it is, is not judged here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overhead import measure


def test_a_bare_loop_makes_the_same_steps(tiny: Path, store: Path, tmp_path: Path) -> None:
    overrides = [f"weights={tiny}", "model=tiny", "callbacks=ema", "data.batch_size=2", "data.held_out=3"]
    overrides += ["trainer.accelerator=cpu", "callbacks.progress=null", "logger=table", "optimizer.lr=1e-2"]
    overrides += ["data.tasks.cover=0.4", "data.tasks.repaint=0.4"]
    found = measure(store, tmp_path / "run", overrides, chunks=2, chunk=3)
    assert found.loss_difference < 1e-5  # nine steps, over the end of an epoch
    assert found.pairs == 2
    assert found.overhead == pytest.approx(found.ours_s / found.bare_s - 1, abs=0.5)
    assert found.overhead_with_compose > found.overhead
