"""One song of an evaluation with its scores, and its line in the table of songs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from acestep.evaluation.prompts import Prompt
from acestep.evaluation.sweep import ADAPTERS
from acestep.types import AdapterUse, Request, Song

SONG_FIELDS = tuple(one.name for one in fields(Song))


@dataclass(frozen=True)
class Row:
    """One song: its scores as ``METRIC.NAME``, the same against other prompts, or why it has none.

    ``excluded`` says why there is no song, ``unheard`` why a metric could not hear it.
    """

    prompt: Prompt
    take: int
    cell: str
    path: Path | None
    excluded: str
    scores: Mapping[str, float]
    shuffled: Mapping[str, float]
    unheard: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> dict[str, Any]:
        """Fields of the song, by their columns."""
        return {f"song.{name}": getattr(self.prompt.song, name) for name in SONG_FIELDS}

    @property
    def beside_words(self) -> str:
        """JSON of what a request asks for beside its words, such as codes and adapters; empty for a plain song."""
        if not isinstance(self.prompt.song, Request):
            return ""
        asked, plain = asdict(self.prompt.song), asdict(Request())
        more = {name: value for name, value in asked.items() if name not in SONG_FIELDS and value != plain[name]}
        return json.dumps(more, sort_keys=True) if more else ""

    @property
    def asked(self) -> str:
        """All that was asked for, as a cell's hash takes it in."""
        return f"{self.prompt.id} {self.take} {self.words}{self.beside_words}"


def row_of(line: Mapping[str, Any], columns: Sequence[str], folder: Path) -> Row:
    """The row that a line of ``songs.parquet`` in ``folder`` tells of, with the scores in ``columns``."""
    words = {name: line[f"song.{name}"] for name in SONG_FIELDS if f"song.{name}" in line}
    more = json.loads(line.get("request") or "{}")
    if uses := more.get(ADAPTERS):
        more[ADAPTERS] = [AdapterUse(**use) for use in uses]
    song = Request(**words, **more) if more else Song(**words)
    return Row(
        prompt=Prompt(id=line["prompt"], song=song),
        take=line["take"],
        cell=line["cell"],
        path=folder / line["audio"] if line["audio"] else None,
        excluded=line["excluded"] or "",
        unheard=json.loads(line.get("unheard") or "{}"),
        scores={name: line[name] for name in columns if line.get(name) is not None},
        shuffled={name: line[f"shuffled.{name}"] for name in columns if line.get(f"shuffled.{name}") is not None},
    )
