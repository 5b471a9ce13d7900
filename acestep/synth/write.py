"""The micro world as a folder of FLAC files, with sidecar files of caption, lyrics and metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from acestep.audio.audio import Audio
from acestep.files import atomic
from acestep.songs import Song
from acestep.synth.render import render_song
from acestep.synth.world import ALL_INSTRUMENTS, CURATED, INSTRUMENTS, SAMPLE_RATE, Annotation, Truth, draw_song


def write_world(
    folder: str | Path,
    songs: int,
    seed: int = 0,
    annotation: Annotation = CURATED,
    instruments: Sequence[str] = INSTRUMENTS,
    workers: int = 1,
    on_song: Callable[[int], None] | None = None,
) -> Path:
    """Write ``songs`` songs to ``folder``; songs that are there already are kept.

    Args:
        folder: created if needed.
        songs: number of songs; song i is the same for every number of songs.
        seed: of factors, descriptions and audio.
        annotation: quality of the descriptions.
        instruments: instruments to draw from.
        workers: number of processes.
        on_song: called after each song with the number of songs that are done.

    Raises:
        ValueError: no songs, an unknown instrument, or a folder with songs of another seed or other settings.
    """
    if songs < 1:
        raise ValueError(f"songs={songs}: need at least 1")
    if unknown := [name for name in instruments if name not in ALL_INSTRUMENTS]:
        known = ", ".join(ALL_INSTRUMENTS)
        raise ValueError(f"instruments={','.join(instruments)}: {unknown[0]!r} is unknown; use {known}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_world(folder, *draw_song(seed, 0, annotation, instruments))
    write = partial(_write_song, folder, seed, annotation, tuple(instruments))
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(write, range(songs), chunksize=8), start=1):
            if on_song:
                on_song(done)
    return folder


def _write_song(folder: Path, seed: int, annotation: Annotation, instruments: tuple[str, ...], index: int) -> None:
    path = folder / f"{index:06d}.flac"
    if path.exists():
        return
    truth, song = draw_song(seed, index, annotation, instruments)
    for sidecar, text in _sidecars(path, truth, song).items():
        with atomic(sidecar) as aside:
            aside.write_text(text, encoding="utf-8")
    # Last, so that a song with audio always has its sidecars.
    Audio(torch.from_numpy(render_song(truth)), SAMPLE_RATE).save(path)


def _sidecars(path: Path, truth: Truth, song: Song) -> dict[Path, str]:
    """The text of each sidecar file of a song."""
    facts = {
        "bpm": song.bpm,
        "keyscale": song.key,
        "timesignature": song.time_signature,
        "language": song.language,
        "truth": asdict(truth),
    }
    texts = {".txt": song.caption, ".lyrics.txt": song.lyrics, ".json": json.dumps(facts, ensure_ascii=False, indent=1)}
    return {path.with_suffix(suffix): f"{text}\n" for suffix, text in texts.items()}


def _check_same_world(folder: Path, truth: Truth, song: Song) -> None:
    """Raise ``ValueError`` if the first song in ``folder`` is not the given one."""
    path = folder / "000000.flac"
    wanted = _sidecars(path, truth, song).items()
    if path.is_file() and any(not one.is_file() or one.read_text("utf-8") != text for one, text in wanted):
        raise ValueError(f"path={folder}: holds songs of another seed, annotation or instruments; name a new folder")
