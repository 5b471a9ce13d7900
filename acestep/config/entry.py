"""A song on its way through a command: what was asked, its file, and what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.planner.plan import Plan
from acestep.songs import request_of
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


def read_record(out: Path) -> dict[str, Any]:
    """What the sidecar of ``out`` says; nothing where there is none, or another file has its name."""
    try:
        record = json.loads(sidecar_of(out).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else {}


def song_of(values: dict[str, Any]) -> Request:
    """The request in a config or sidecar."""
    values = {key: value for key, value in values.items() if key != "_target_" and value is not None}
    adapters = [{key: use[key] for key in ("path", "scale")} for use in values.pop("adapters", ())] or None
    return request_of(values | ({"adapters": adapters} if adapters else {}), Path())
