"""The run and the plain loop of the overhead benchmark have the same losses; speed is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overhead import measure


def test_overhead_compares_identical_steps(tiny: Path, store: Path, tmp_path: Path) -> None:
    overrides = [f"weights={tiny}", "model=tiny", "callbacks=ema", "data.batch_size=2", "data.held_out=3"]
    overrides += ["trainer.accelerator=cpu", "callbacks.progress=null", "logger=table", "optimizer.lr=1e-2"]
    overrides += ["data.tasks.cover=0.4", "data.tasks.repaint=0.4"]
    overhead = measure(store, tmp_path / "run", overrides, chunks=2, chunk=3)
    assert overhead.loss_difference < 1e-5  # nine steps, over the end of an epoch
    assert overhead.pairs == 2
    assert overhead.overhead == pytest.approx(overhead.ours_s / overhead.bare_s - 1, abs=0.5)
    assert overhead.overhead_with_compose > overhead.overhead
