"""A song on its way through a command: what was asked, its file, and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.planner.plan import Plan
from acestep.songs.lists import request_of
from acestep.types import Request


@dataclass(eq=False)
class Entry:
    """One song of a command, by its place in the list.

    Attributes:
        number: its place, from 1.
        request: what is to be made; ``None`` where that cannot be read.
        out: its file.
        error: why it is not made, in a sentence.
        is_there: whether an earlier run made it.
        plan: what a planner has made of it so far.
        planned: what its sidecar says of the plan: who made it, and of which request.
        waits: whether its plan lies in a file for a person to edit.
    """

    number: int
    request: Request | None
    out: Path | None = None
    error: str = ""
    is_there: bool = False
    plan: Plan | None = None
    planned: dict[str, Any] | None = None
    waits: bool = False

    @property
    def name(self) -> str:
        """What to call it."""
        return self.out.name if self.out else f"song {self.number}"

    @property
    def goes_on(self) -> bool:
        """Whether it is still to be made, as far as is known."""
        return self.request is not None and not (self.error or self.is_there or self.waits)

    def fails(self, error: BaseException) -> None:
        """It is not made, because of ``error``."""
        self.error = " ".join(str(error).split())


def sidecar_of(out: Path) -> Path:
    """The file that says how ``out`` was made."""
    return out.with_suffix(".json")


def read_sidecar(path: Path) -> dict[str, Any]:
    """What the sidecar at ``path`` says, its ``settings`` with a ``song`` among it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"from={path}: no such file; need the .json beside a song") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"from={path}: not the .json that infer.py writes beside a song") from error
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("song"), dict):
        raise ValueError(f"from={path}: not the .json that infer.py writes beside a song; it has no settings.song")
    return record


def read_record(out: Path) -> dict[str, Any]:
    """What the sidecar of ``out`` says; nothing where there is none, or another file has its name."""
    try:
        return read_sidecar(sidecar_of(out))
    except ValueError:
        return {}


def song_of(values: dict[str, Any]) -> Request:
    """The request in a config or sidecar."""
    values = {key: value for key, value in values.items() if key != "_target_" and value is not None}
    if isinstance(adapters := values.pop("adapters", None), list):
        adapters = [_without_target(use) for use in adapters]
    return request_of(values | ({"adapters": adapters} if adapters else {}), Path())


def _without_target(use: Any) -> Any:
    return {key: value for key, value in use.items() if key != "_target_"} if isinstance(use, dict) else use
