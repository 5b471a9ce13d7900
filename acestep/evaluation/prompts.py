"""Prompts of an evaluation from folders and lists, with recordings of the same descriptions as references."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from acestep.audio.audio import Audio, read_nonempty_audio
from acestep.data.sources import find_songs
from acestep.data.store import SETTINGS_FILE, LatentStore, autoencoder_settings
from acestep.data.text import read_sidecars
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.hashing import digest
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.songs.lists import SongListEntry, read_songs
from acestep.synth.world import ANNOTATIONS, INSTRUMENTS
from acestep.synth.write import write_world
from acestep.weights.checkpoint import Lengths


@dataclass(frozen=True, kw_only=True)
class EvaluationPrompt:
    """A song to generate.

    Attributes:
        id: name in tables, unique within an evaluation.
        song: the description, and the seed that all sweep points share.
        truth: JSON of the micro world's facts, for its oracles; empty for other songs.
        recording: a real song of this description: a reference for set distances and the ceiling.
    """

    id: str
    song: Song
    truth: str = ""
    recording: Path | None = None


class PromptSource(Protocol):
    """Source of prompts."""

    def load(self, lengths: Lengths) -> list[EvaluationPrompt]:
        """The prompts, in a fixed order, with durations that a checkpoint supports."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderPrompts:
    """A folder of recordings with sidecars: their captions and lyrics are prompts, their audio is the reference.

    Attributes:
        path: the folder.
        limit: maximum number of prompts, the first by name; 0 takes all.
        seed: determines every song's noise, together with its name.
        seconds: duration of all songs; 0 takes the recording's own if the checkpoint supports it, else the checkpoint's
            default.
    """

    path: str
    limit: int = 0
    seed: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        _check_whole("limit", self.limit, 0)
        _check_whole("seed", self.seed)
        if not isinstance(self.seconds, int | float) or not self.seconds >= 0:
            raise ValueError(f"eval.prompts.seconds={self.seconds}: need >= 0 (0: as long as the recording)")

    def load(self, lengths: Lengths) -> list[EvaluationPrompt]:
        root = Path(self.path)
        files = find_songs(root, "eval.prompts.path")
        return [self._prompt(file, root, lengths) for file in files[: self.limit or len(files)]]

    def _prompt(self, file: Path, root: Path, lengths: Lengths) -> EvaluationPrompt:
        name = file.relative_to(root).as_posix()
        described = read_sidecars(file)
        seconds = self.seconds or self._seconds(file)
        if not self.seconds and not lengths.min_seconds <= seconds <= lengths.max_seconds:
            seconds = lengths.default_seconds
        song = replace(described.song, seconds=seconds, seed=song_seed(name, self.seed))
        return EvaluationPrompt(id=name, song=song, truth=described.truth, recording=file)

    def _seconds(self, file: Path) -> float:
        try:
            return read_nonempty_audio(file).seconds
        except ValueError as error:
            raise ValueError(f"eval.prompts.path={self.path}: {error}; mend it or take it out of the folder") from error


@dataclass(frozen=True, kw_only=True)
class MicroPrompts:
    """Songs of the micro world, with their truths, rendered to a folder on the first call.

    Attributes:
        path: the folder.
        songs: number of songs.
        seed: of the songs: one that differs from the training set's gives unseen songs.
        instruments: instruments to draw from; empty for the world's usual ones.
        annotation: style of the descriptions: ``curated``, ``web`` or ``musician``.
    """

    path: str
    songs: int = 64
    seed: int = 20_000
    instruments: tuple[str, ...] = ()
    annotation: str = "curated"

    def __post_init__(self) -> None:
        _check_whole("songs", self.songs, 1)
        _check_whole("seed", self.seed, 0)

    def load(self, lengths: Lengths) -> list[EvaluationPrompt]:
        if self.annotation not in ANNOTATIONS:
            raise ValueError(f"eval.prompts.annotation={self.annotation}: not known; use {', '.join(ANNOTATIONS)}")
        annotation = ANNOTATIONS[self.annotation]
        try:
            write_world(self.path, self.songs, self.seed, annotation, self.instruments or INSTRUMENTS)
        except ValueError as error:
            raise ValueError(f"eval.prompts.{error}") from error
        return FolderPrompts(path=self.path, limit=self.songs, seed=self.seed).load(lengths)


@dataclass(frozen=True, kw_only=True)
class ListPrompts:
    """A list of songs in the format of ``infer.py``, each optionally with an ``id`` and a ``recording``.

    Attributes:
        path: the file; recordings are relative to its folder.
        seed: determines the noise of every song without a seed of its own.
    """

    path: str
    seed: int = 0

    def load(self, lengths: Lengths) -> list[EvaluationPrompt]:
        if not Path(self.path).is_file():
            raise ValueError(f"eval.prompts.path={self.path}: no such file; name a .jsonl with one song on each line")
        try:
            lines = read_songs(self.path, extra_keys=("id", "recording"))
        except ValueError as error:
            raise ValueError(f"eval.prompts.path={str(error).removeprefix('songs=')}") from error
        prompts = [self._prompt(line) for line in lines]
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise ValueError(f"eval.prompts.path={self.path}: two lines have the same id; ids must be unique")
        return prompts

    def _prompt(self, line: SongListEntry) -> EvaluationPrompt:
        known = {field.name for field in fields(Song)}
        error = line.error
        if unknown := sorted(line.given - known):
            error = f"has {', '.join(unknown)}; prompts may have id, recording, {', '.join(sorted(known))}"
        if line.request is None or error:
            raise ValueError(f"eval.prompts.path={self.path}: song {line.number}: {error}")
        name = line.extra.get("id", f"{line.number:04d}")
        song = Song(**{key: getattr(line.request, key) for key in known})
        if "seed" not in line.given:
            song = replace(song, seed=song_seed(name, self.seed))
        recording = Path(self.path).parent / line.extra["recording"] if "recording" in line.extra else None
        if recording is not None and not recording.is_file():
            raise ValueError(f"eval.prompts.path={self.path}: song {line.number}: {recording}: no such recording")
        return EvaluationPrompt(id=name, song=song, recording=recording)


def _check_whole(key: str, value: Any, minimum: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (minimum is not None and value < minimum):
        rule = "a whole number" if minimum is None else f"a whole number of at least {minimum}"
        raise ValueError(f"eval.prompts.{key}={value}: need {rule}")


def song_seed(name: str, seed: int, take: int = 0) -> int:
    """A song's seed from its name, independent of its position in the list and of the process that generates it."""
    return int(digest(name, str(seed), str(take))[:8], 16) % 2**31


def reference_recordings(path: str, pipeline: Pipeline, out: Path, ranks: Ranks) -> list[Path]:
    """Recordings in ``path``; those of a latent store are decoded to ``out`` first, by all ranks together.

    Decoded songs have the same autoencoder artefacts as generated ones, so a distance to them measures the generator.

    Raises:
        ValueError: nothing to compare with, or a store of another autoencoder.
    """
    root = Path(path)
    if not (root / SETTINGS_FILE).is_file():
        files = find_songs(root, "eval.reference")
        if len(files) < 2:
            raise ValueError(f"eval.reference={path}: fewer than 2 recordings there; name a folder of songs or a store")
        return files
    store = LatentStore(root)
    store.check(autoencoder_settings(pipeline.autoencoder))
    paths = [out / f"{sha256[:32]}.flac" for sha256 in store.sha256]
    for index in ranks.shard(range(len(store))):
        if not paths[index].is_file():
            mean, _ = store.latents(index)
            decoded = pipeline.decode(mean.float()[None])[0].cpu()
            Audio(decoded.clamp(-1, 1), pipeline.autoencoder.sample_rate).save(paths[index])
    ranks.barrier()
    return paths
