"""What is asked of a model, and what a person made of the same words: prompts from folders and lists."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from acestep.audio.audio import read_sound
from acestep.data.sources import describe, find_songs
from acestep.evaluation.files import digest
from acestep.songs.lists import Line, read_songs
from acestep.synth.world import ANNOTATIONS, INSTRUMENTS
from acestep.synth.write import write_world
from acestep.types import Song
from acestep.weights.checkpoint import Lengths


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A song to ask for.

    Attributes:
        id: its name in tables, unique within an evaluation.
        song: the words, and the seed that every cell of a sweep shares.
        truth: JSON of what the oracles of the micro world look for; empty for other songs.
        recording: a real song of these words: the reference of set distances and of the ceiling.
    """

    id: str
    song: Song
    truth: str = ""
    recording: Path | None = None


class PromptSource(Protocol):
    """Where prompts come from."""

    def load(self, lengths: Lengths) -> list[Prompt]:
        """The prompts, in a fixed order, at lengths that a checkpoint makes."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderPrompts:
    """A folder of recordings with sidecars: their captions and lyrics are prompts, their audio is the reference.

    Attributes:
        path: the folder.
        limit: most prompts, the first by name; 0 takes all.
        seed: decides every song's noise, together with its name.
        seconds: length to ask for; 0 asks for the recording's own where the checkpoint makes songs as long, else for
            the checkpoint's usual length.
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

    def load(self, lengths: Lengths) -> list[Prompt]:
        """One prompt for each recording."""
        root = Path(self.path)
        found = find_songs(root, "eval.prompts.path")
        return [self._prompt(file, root, lengths) for file in found[: self.limit or len(found)]]

    def _prompt(self, file: Path, root: Path, lengths: Lengths) -> Prompt:
        name = file.relative_to(root).as_posix()
        described = describe(file)
        wanted = self.seconds or self._seconds(file)
        if not self.seconds and not lengths.min_seconds <= wanted <= lengths.max_seconds:
            wanted = lengths.default_seconds
        song = replace(described.song, seconds=wanted, seed=seed_of(name, self.seed))
        return Prompt(id=name, song=song, truth=described.truth, recording=file)

    def _seconds(self, file: Path) -> float:
        try:
            return read_sound(file).seconds
        except ValueError as error:
            raise ValueError(f"eval.prompts.path={self.path}: {error}; mend it or take it out of the folder") from error


@dataclass(frozen=True, kw_only=True)
class MicroPrompts:
    """Songs of the micro world, with their truths, rendered to a folder on the first call.

    Attributes:
        path: the folder.
        songs: how many.
        seed: of the world: another than training's gives songs that no training has seen.
        instruments: what may play; empty for the world's usual ones.
        annotation: how the songs are described: ``curated``, ``web`` or ``musician``.
    """

    path: str
    songs: int = 64
    seed: int = 20_000
    instruments: tuple[str, ...] = ()
    annotation: str = "curated"

    def __post_init__(self) -> None:
        _check_whole("songs", self.songs, 1)
        _check_whole("seed", self.seed, 0)

    def load(self, lengths: Lengths) -> list[Prompt]:
        """One prompt for each song."""
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
    """A list of songs as ``infer.py`` reads it, each with optionally an ``id`` and a ``recording``.

    Attributes:
        path: the file; recordings are relative to its folder.
        seed: decides the noise of every song that names no seed itself.
    """

    path: str
    seed: int = 0

    def load(self, lengths: Lengths) -> list[Prompt]:
        """One prompt for each line."""
        if not Path(self.path).is_file():
            raise ValueError(f"eval.prompts.path={self.path}: no such file; name a .jsonl with one song on each line")
        try:
            lines = read_songs(self.path, more=("id", "recording"))
        except ValueError as error:
            raise ValueError(f"eval.prompts.path={str(error).removeprefix('songs=')}") from error
        prompts = [self._prompt(line) for line in lines]
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise ValueError(f"eval.prompts.path={self.path}: two lines have the same id; ids must be unique")
        return prompts

    def _prompt(self, line: Line) -> Prompt:
        known = {field.name for field in fields(Song)}
        error = line.error
        if unknown := sorted(line.given - known):
            error = f"has {', '.join(unknown)}; prompts may have id, recording, {', '.join(sorted(known))}"
        if line.request is None or error:
            raise ValueError(f"eval.prompts.path={self.path}: song {line.number}: {error}")
        name = line.more.get("id", f"{line.number:04d}")
        song = Song(**{key: getattr(line.request, key) for key in known})
        if "seed" not in line.given:
            song = replace(song, seed=seed_of(name, self.seed))
        recording = Path(self.path).parent / line.more["recording"] if "recording" in line.more else None
        if recording is not None and not recording.is_file():
            raise ValueError(f"eval.prompts.path={self.path}: song {line.number}: {recording}: no such recording")
        return Prompt(id=name, song=song, recording=recording)


def _check_whole(key: str, value: Any, least: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        rule = "a whole number" if least is None else f"a whole number of at least {least}"
        raise ValueError(f"eval.prompts.{key}={value}: need {rule}")


def seed_of(name: str, seed: int, take: int = 0) -> int:
    """A song's seed from its name: it depends neither on its place in the list nor on who generates it."""
    return int(digest(name, str(seed), str(take))[:8], 16) % 2**31
