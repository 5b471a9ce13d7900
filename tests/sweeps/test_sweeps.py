"""A killed sweep resumes, an error ends its run and not the sweep, and the report names every run and error."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import SMALL, call, small_store

from acestep.runs.status import RunState, read_status
from acestep.runs.table import read_sweep

pytestmark = pytest.mark.long

more = pytest.mark.skipif("ACESTEP_SWEEPS" not in os.environ, reason="ACESTEP_SWEEPS=1 runs it: half a minute")
GRID = ("optimizer.lr=1e-3,1e-2", "data.held_out=2,99")
"""Two runs that finish, and two that fail: the store has six songs."""


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("sweep"), tiny)


def words(tiny: Path, store: Path, folder: Path) -> list[str]:
    return [*SMALL, f"weights={tiny}", f"data.path={store}", f"hydra.sweep.dir={folder}"]


def killed_after_one(*arguments: str, folder: Path) -> None:
    """Start the sweep, and kill it when its first run has ended and its second has started."""
    process = multiprocessing.get_context("forkserver").Process(target=call, args=("train", "--multirun", *arguments))
    process.start()
    while process.is_alive() and len(list(folder.glob("*/status.json"))) < 2:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _as_if_killed_after_the_last_step(run: Path) -> None:
    """Delete everything after the last step's checkpoint: its validation, the result, and the final status."""
    (run / "checkpoints" / "last.ckpt").unlink()
    shutil.rmtree(run / "weights")
    replace(read_status(run), state=RunState.running).write(run)
    lines = (run / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("2,val/")]
    assert len(kept) < len(lines)
    (run / "metrics.csv").write_text("".join(kept), encoding="utf-8")


@pytest.mark.slow
def test_a_killed_sweep_gives_the_same_table(
    tiny: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = [*words(tiny, store, tmp_path / "whole"), *GRID]
    assert call("train", "--multirun", *grid) == 1
    assert "data.held_out=99" in capfd.readouterr().err

    again = [*words(tiny, store, tmp_path / "killed"), *GRID]
    killed_after_one(*again, folder=tmp_path / "killed")
    states = [read_status(path.parent).state for path in (tmp_path / "killed").glob("*/status.json")]
    assert RunState.running in states or len(states) < 4
    assert call("train", "--multirun", *again) == 1
    assert "finished before" in capfd.readouterr().err or RunState.finished not in states

    tables = []
    for name in ("whole", "killed"):
        assert call("acestep", "report", str(tmp_path / name)) == 0
        tables.append(pq.read_table(tmp_path / name / "sweep.parquet").to_pylist())
    assert tables[0] == tables[1]
    assert [row["state"] for row in tables[0]].count("finished") == 2
    assert {row["optimizer.lr"] for row in tables[0]} == {1e-3, 1e-2}
    assert all(row["val/loss"] > 0 for row in tables[0] if row["state"] == "finished")

    _as_if_killed_after_the_last_step(tmp_path / "killed" / tables[0][0]["run"])
    assert call("train", "--multirun", *again) == 1
    assert call("acestep", "report", str(tmp_path / "killed")) == 0
    assert pq.read_table(tmp_path / "killed" / "sweep.parquet").to_pylist() == tables[0]

    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert page.count("the store") >= 2  # each failed run's last error
    assert "python train.py model=tiny" in page
    assert (tmp_path / "whole" / "plots" / "parallel_coordinates.png").is_file()
    best = read_sweep(tmp_path / "whole").ranked()
    assert best[0].numbers["val/loss"] <= best[1].numbers["val/loss"]


@pytest.mark.slow
@more
def test_a_search_is_resumed_without_repeating_runs(
    tiny: Path, store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = ["sweep=search", "hydra.sweeper.n_trials=2", *words(tiny, store, tmp_path)]
    assert call("train", *few) == 0
    sweep = read_sweep(tmp_path)
    assert len(sweep.rows) == 2
    assert set(sweep.swept) == {"optimizer.lr", "objective.dropout.rate"}
    assert call("train", *few) == 0
    assert capfd.readouterr().err.count("finished before") == 2


@pytest.mark.slow
@more
def test_two_parallel_runs_on_one_machine(tiny: Path, store: Path, tmp_path: Path) -> None:
    jobs = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.lr=1e-3,1e-2"]
    assert call("train", "--multirun", *jobs, *words(tiny, store, tmp_path)) == 0
    assert [row.state for row in read_sweep(tmp_path).rows] == [RunState.finished] * 2


@pytest.mark.slow
def test_a_job_through_submitit(tiny: Path, store: Path, tmp_path: Path) -> None:
    job = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30", "optimizer.lr=1e-3"]
    assert call("train", "--multirun", *job, *words(tiny, store, tmp_path)) == 0
    assert [row.state for row in read_sweep(tmp_path).rows] == [RunState.finished]


def test_runs_of_a_sweep_set_no_folder(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*words(tiny, tmp_path, tmp_path / "sweep"), "seed=1,2", f"run.dir={tmp_path / 'one'}"]
    assert call("train", "--multirun", *arguments) == 1
    assert "hydra.sweep.dir=DIR" in capfd.readouterr().err


def test_a_folder_without_runs_is_no_sweep(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds no runs"):
        read_sweep(tmp_path)
    assert call("acestep", "report", str(tmp_path)) == 1
