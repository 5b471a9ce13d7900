"""What is asked of a model, and what a person made of the same words: prompts from folders and lists."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from acestep.audio import read_audio
from acestep.data.sources import describe, find_songs
from acestep.evaluation.files import digest
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

    def load(self, lengths: Lengths) -> list[Prompt]:
        """One prompt for each recording."""
        root = Path(self.path)
        found = find_songs(root)
        return [self._prompt(file, root, lengths) for file in found[: self.limit or len(found)]]

    def _prompt(self, file: Path, root: Path, lengths: Lengths) -> Prompt:
        name = file.relative_to(root).as_posix()
        described = describe(file)
        wanted = self.seconds or read_audio(file).seconds
        if not self.seconds and not lengths.min_seconds <= wanted <= lengths.max_seconds:
            wanted = lengths.default_seconds
        song = replace(described.song, seconds=wanted, seed=seed_of(name, self.seed))
        return Prompt(id=name, song=song, truth=described.truth, recording=file)


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

    def load(self, lengths: Lengths) -> list[Prompt]:
        """One prompt for each song."""
        if self.annotation not in ANNOTATIONS:
            raise ValueError(f"eval.prompts.annotation={self.annotation}: not known; use {', '.join(ANNOTATIONS)}")
        annotation = ANNOTATIONS[self.annotation]
        write_world(self.path, self.songs, self.seed, annotation, self.instruments or INSTRUMENTS)
        return FolderPrompts(path=self.path, limit=self.songs, seed=self.seed).load(lengths)


@dataclass(frozen=True, kw_only=True)
class ListPrompts:
    """A JSON Lines file: each line an object with the fields of a song, and optionally ``id`` and ``recording``.

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
        lines = Path(self.path).read_text(encoding="utf-8").splitlines()
        prompts = [self._prompt(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise ValueError(f"eval.prompts.path={self.path}: two lines have the same id; ids must be unique")
        return prompts

    def _prompt(self, number: int, text: str) -> Prompt:
        try:
            line: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"eval.prompts.path={self.path}: line {number} is not JSON ({error})") from error
        known = {field.name for field in fields(Song)}
        unknown = line.keys() - known - {"id", "recording"}
        if unknown:
            raise ValueError(
                f"eval.prompts.path={self.path}: line {number} has {', '.join(sorted(unknown))}; "
                f"a line may have id, recording, {', '.join(sorted(known))}"
            )
        name = str(line.get("id", f"{number:04d}"))
        song = Song(**{"seed": seed_of(name, self.seed), **{key: line[key] for key in line.keys() & known}})
        recording = Path(self.path).parent / line["recording"] if "recording" in line else None
        return Prompt(id=name, song=song, recording=recording)


def seed_of(name: str, seed: int, take: int = 0) -> int:
    """A song's seed from its name: it depends neither on its place in the list nor on who generates it."""
    return int(digest(name, str(seed), str(take))[:8], 16) % 2**31
