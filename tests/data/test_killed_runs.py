"""A killed run can be continued to the same store, without encoding finished songs again."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from data.folder import Counting, Means, content_hash, write_songs

from acestep.data.preprocess import Preprocess
from acestep.data.store_writer import FILE_STATES, store_lock

pytestmark = pytest.mark.long

KILLS = int(os.environ.get("ACESTEP_KILLS", "0"))


def _run(songs: Path, store: Path, log: Path, workers: int) -> None:
    torch.set_num_threads(1)
    Preprocess(shard_songs=16, workers=workers)(songs, store, partial(Counting, log))


def _killed(arguments: tuple, log: Path, songs: int, seconds: float) -> bool:
    """Run in a process that is killed ``seconds`` after it encoded ``songs``; whether it had finished before."""
    # Forked, so that the process is killed while it encodes and not while it imports.
    process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
    before = _lines(log)
    process.start()
    while process.is_alive() and _lines(log) < before + songs:
        time.sleep(0.001)
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == 0


def _lines(log: Path) -> int:
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "most"), [(0, KILLS or 3), (2, KILLS or 1)])
def test_killed_at_random_moments_a_run_of_200_songs_ends_in_the_same_store(
    tmp_path: Path, workers: int, most: int
) -> None:
    songs = write_songs(tmp_path / "songs", 200, seconds=0.3)
    _run(songs, tmp_path / "whole", tmp_path / "whole.log", 0)
    log = tmp_path / "log"
    arguments = (songs, tmp_path / "store", log, workers)
    moments = random.Random(0)
    kills = 0
    while kills < most:
        # Between two kills, a share of the songs is encoded, so that no run finishes before the last one.
        if _killed(arguments, log, moments.randint(0, 200 // (most + 1)), moments.uniform(0.0, 0.05)):
            break
        kills += 1
    _run(*arguments)
    assert kills > most // 2
    assert content_hash(tmp_path / "store") == content_hash(tmp_path / "whole")
    assert len((tmp_path / "whole.log").read_text().split()) == 200
    # Encoded again is at most what each process was working on when killed: one song encoding, and one being written.
    assert 200 <= len(log.read_text().split()) <= 200 + 2 * kills * max(1, workers)
    left = [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [name for name in left if name.startswith(".") and name not in (".lock", FILE_STATES)]


@pytest.mark.parametrize("moment", ["shard written", "old row dropped"])
def test_a_kill_while_merging_pending_songs_leaves_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    songs, store = write_songs(tmp_path / "songs", 6), tmp_path / "store"
    run = Preprocess(shard_songs=3)
    run(songs, store, Means)
    (songs / "song04.wav").write_bytes((songs / "song01.wav").read_bytes())
    run(songs, tmp_path / "whole", Means)

    class KillError(Exception):
        pass

    def kill(*_: object) -> None:
        raise KillError

    with monkeypatch.context() as patch:
        if moment == "shard written":
            patch.setattr("acestep.data.store_writer._delete_rows", kill)
        else:
            unlink = Path.unlink
            patch.setattr(
                Path, "unlink", lambda path, **options: kill() if path.suffix == ".arrow" else unlink(path, **options)
            )
        with pytest.raises(KillError):
            run(songs, store, Means)
    outcome = run(songs, store, Means)
    assert (outcome.stored, outcome.kept) == (0, 6)
    assert content_hash(store) == content_hash(tmp_path / "whole")


def test_a_store_has_one_writer(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 1)
    with store_lock(tmp_path / "store"), pytest.raises(ValueError, match="another process is writing to it"):
        Preprocess()(songs, tmp_path / "store", Means)
    assert Preprocess()(songs, tmp_path / "store", Means).stored == 1


def test_no_threads_are_left_running(tmp_path: Path) -> None:
    songs = write_songs(tmp_path / "songs", 5, seconds=30)
    before = threading.active_count()

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Preprocess()(songs, tmp_path / "store", Means, interrupt)
    assert threading.active_count() <= before
