"""The micro world on disk, as any user's folder: FLAC files with caption, lyrics and metadata beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from acestep.audio.audio import Audio
from acestep.files import atomic
from acestep.synth.render import SAMPLE_RATE, render
from acestep.synth.world import CURATED, INSTRUMENTS, UNSEEN_INSTRUMENT, Annotation, Truth, describe, draw_truth
from acestep.types import Song

PLAYED = (*INSTRUMENTS, UNSEEN_INSTRUMENT)


def draw_song(
    seed: int, index: int, annotation: Annotation = CURATED, instruments: Sequence[str] = INSTRUMENTS
) -> tuple[Truth, Song]:
    """Song ``index`` of the world ``seed``: its truth and its description. Depends on nothing else."""
    rng = np.random.default_rng([seed, index])
    truth = draw_truth(rng, instruments)
    return truth, describe(truth, rng, annotation)


def write_world(
    folder: str | Path,
    songs: int,
    seed: int = 0,
    annotation: Annotation = CURATED,
    instruments: Sequence[str] = INSTRUMENTS,
    workers: int = 1,
    on_song: Callable[[int], None] | None = None,
) -> Path:
    """Write ``songs`` songs into ``folder``; what is there already is kept, so a longer world continues a shorter.

    Args:
        folder: made if it is not there.
        songs: how many; song i is the same in every world of this ``seed``.
        seed: of the truths, descriptions and renderings.
        annotation: how carefully the songs are described.
        instruments: which ones play.
        workers: processes that render.
        on_song: told after each song how many are done.

    Raises:
        ValueError: a count or an instrument that cannot be, or a folder with the songs of another world.
    """
    if songs < 1:
        raise ValueError(f"songs={songs}: need at least 1")
    if unknown := [name for name in instruments if name not in PLAYED]:
        raise ValueError(f"instruments={','.join(instruments)}: {unknown[0]!r} is unknown; use {', '.join(PLAYED)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_world(folder, *draw_song(seed, 0, annotation, instruments))
    write = partial(_write_song, folder, seed, annotation, tuple(instruments))
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(write, range(songs), chunksize=8), start=1):
            if on_song:
                on_song(done)
    return folder


def read_truth(text: str) -> Truth:
    """The truth in a song's ``NAME.json``, or in the ``truth`` column of a latent store."""
    fields = json.loads(text)
    return Truth(**fields.get("truth", fields))


def _write_song(folder: Path, seed: int, annotation: Annotation, instruments: tuple[str, ...], index: int) -> None:
    path = folder / f"{index:06d}.flac"
    if path.exists():
        return
    truth, song = draw_song(seed, index, annotation, instruments)
    for beside, text in _sidecars(path, truth, song).items():
        with atomic(beside) as aside:
            aside.write_text(text, encoding="utf-8")
    Audio(torch.from_numpy(render(truth)), SAMPLE_RATE).save(path)  # last: with it the song is whole


def _sidecars(path: Path, truth: Truth, song: Song) -> dict[Path, str]:
    """What stands beside a song's audio, by file."""
    facts = {
        "bpm": song.bpm,
        "keyscale": song.key,
        "timesignature": song.time_signature,
        "language": song.language,
        "truth": truth.as_dict(),
    }
    texts = {".txt": song.caption, ".lyrics.txt": song.lyrics, ".json": json.dumps(facts, ensure_ascii=False, indent=1)}
    return {path.with_suffix(suffix): f"{text}\n" for suffix, text in texts.items()}


def _check_same_world(folder: Path, truth: Truth, song: Song) -> None:
    """Refuse a folder whose first song is another than this world's."""
    path = folder / "000000.flac"
    wanted = _sidecars(path, truth, song).items()
    if path.is_file() and any(not one.is_file() or one.read_text("utf-8") != text for one, text in wanted):
        raise ValueError(f"path={folder}: holds songs of another seed, annotation or instruments; name a new folder")
