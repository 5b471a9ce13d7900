"""Generation of a list of songs; a song that fails does not affect the others."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from acestep.audio.audio import SUBTYPES
from acestep.cli.plan_songs import Planning
from acestep.cli.song_writer import (
    SongJob,
    SongWriter,
    check_writable,
    file_name,
    peak_memory_text,
    read_existing_sidecar,
    shared_adapters,
)
from acestep.cli.terminal import on_step_progress, song_progress
from acestep.pipeline.build import open_weights
from acestep.songs import AdapterUse, Request
from acestep.songs.lists import SongListEntry, read_songs

SOME_FAILED, ALL_FAILED = 3, 1
"""Exit statuses."""
NOT_COMPARED = ("device", "memory", "batch_size", "song")
"""Settings that may differ between an existing song and a request for it."""


def generate_list(files: dict[str, Any], settings: dict[str, Any], planning: Planning | None) -> int:
    """Generate the songs of the list ``files["songs"]`` in the folder ``files["out"]``; returns the exit status."""
    started = perf_counter()
    folder = Path(files["out"] or "out")
    if folder.suffix.lower() in SUBTYPES or folder.is_file():
        raise ValueError(f"out={folder}: songs={files['songs']} lists many songs, so this has to be a folder")
    check_writable(folder, folder)
    if f".{files['format']}" not in SUBTYPES:
        raise ValueError(f"format={files['format']}: use one of {', '.join(name[1:] for name in SUBTYPES)}")
    shared = shared_adapters(settings)
    jobs = _list_jobs(read_songs(files["songs"]), folder, files["format"], shared)
    opened = open_weights(settings["weights"])
    if planning:
        planning(jobs, settings, opened, replan=files["overwrite"])
    pending = [job for job in jobs if job.is_pending]
    if pending:
        writer = SongWriter.open(settings, opened, [job.request for job in pending], shared)
        for job in pending:
            _resolve(job, writer, files["overwrite"])
        pending = [job for job in pending if job.is_pending]
        _generate_pending(pending, writer, files["keep_latents"], len(jobs) - len(pending))
    return _print_result(jobs, pending, f"{perf_counter() - started:.1f} s; {peak_memory_text(settings['device'])}")


def _list_jobs(
    entries: Sequence[SongListEntry], folder: Path, suffix: str, shared: tuple[AdapterUse, ...] | None
) -> list[SongJob]:
    """A job for every entry, with its file in ``folder``; file names must be unique."""
    jobs, names = [], set()
    for entry in entries:
        if entry.request is None:
            jobs.append(SongJob(entry.number, Request(), folder / f"song {entry.number}", entry.error))
            continue
        request = replace(entry.request, adapters=shared) if entry.request.adapters is None else entry.request
        job = SongJob(entry.number, request, folder / file_name(request, entry.number, suffix))
        name = unicodedata.normalize("NFC", job.out.stem).casefold()
        if name in names:
            job.error = f"song.name={request.name}: an earlier song of the list has it; use another"
        names.add(name)
        jobs.append(job)
    return jobs


def _resolve(job: SongJob, writer: SongWriter, overwrite: bool) -> None:
    """Validate the request, and find out whether its song exists already."""
    try:
        job.request = writer.pipeline.resolve(job.request)
        writer.pipeline.adapter_set.prepare(job.request.adapters or ())
    except (ValueError, OSError, OverflowError) as error:
        job.fail(error)
        return
    if overwrite or not (job.out.exists() or job.out.with_suffix(".json").exists()):
        return
    expected, recorded = writer.record(job.request), read_existing_sidecar(job.out).get("settings")
    is_same = recorded is not None and _comparable(recorded) == _comparable(json.loads(json.dumps(expected)))
    if job.out.exists() and is_same:
        job.exists = True
    elif job.out.exists() or recorded is None:
        job.error = f"out={job.out}: exists and is another song; name another folder, or add overwrite=true"


def _generate_pending(pending: Sequence[SongJob], writer: SongWriter, keep_latents: bool, before: int) -> None:
    size = 1 if keep_latents else writer.settings["batch_size"]
    with song_progress(before + len(pending), before) as set_done:
        for start in range(0, len(pending), size):
            batch, done = pending[start : start + size], before + start
            on_step = on_step_progress(set_done, done, len(batch))
            for job, seconds, took in _generate_batch(batch, writer, keep_latents, on_step):
                print(f"{job.out}  ({seconds:.1f} s of music in {took:.1f} s)", flush=True)
            set_done(done + len(batch))


def _generate_batch(
    batch: Sequence[SongJob], writer: SongWriter, keep_latents: bool, on_step: Callable[..., None]
) -> Iterator[tuple[SongJob, float, float]]:
    """Generate and save ``batch``; after an error, its songs one by one. Yields duration and time of each song."""
    left = list(batch)
    started = perf_counter()
    try:
        latents = batch[0].out if keep_latents else None
        for audio in writer.generate([job.request for job in batch], latents, on_step):
            job = left[0]
            writer.save(audio, job)
            left.pop(0)
            yield job, audio.seconds, perf_counter() - started
            started = perf_counter()
    except (ValueError, OSError) as error:
        if len(batch) == 1:
            batch[0].fail(error)
            return
        for job in left:
            yield from _generate_batch([job], writer, keep_latents, on_step)


def _print_result(jobs: Sequence[SongJob], pending: Sequence[SongJob], cost: str) -> int:
    """Print the failed songs and the counts; returns the exit status."""
    failed = [job for job in jobs if job.error]
    generated = sum(not job.error for job in pending)
    existing, planned = sum(job.exists for job in jobs), sum(job.awaits_edit for job in jobs)
    width = max((len(job.out.name) for job in failed), default=0)
    for job in failed:
        print(f"failed  {job.number:>4}  {job.out.name:<{width}}  {job.error}")
    counts = f"{planned} planned, " if planned else ""
    counts += f"{generated} generated, {existing} already there, {len(failed)} failed"
    print(f"{counts}, in {cost}", flush=True)
    if not failed:
        return 0
    return SOME_FAILED if generated or existing or planned else ALL_FAILED


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    song = {key: value for key, value in settings.get("song", {}).items() if key != "name"}
    return {key: value for key, value in settings.items() if key not in NOT_COMPARED} | {"song": song}
