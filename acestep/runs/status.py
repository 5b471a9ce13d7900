"""What became of a run: ``status.json`` in its folder, which a sweep goes on by and its report is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from acestep.files import atomic

STATUS = "status.json"


class State(Enum):
    """``stopped`` can go on; ``running`` is also what a killed run leaves behind."""

    running = "running"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"


@dataclass(frozen=True, kw_only=True)
class Status:
    """One run.

    Args:
        main: the program: ``train`` or ``evaluate``.
        overrides: what its command line said, as Hydra reads it.
        state: how it ended, if it has.
        error: the sentence that it failed with.
        score: what a search looks at.
        result_sha256: hash of the trained weights, by file name.
    """

    main: str
    overrides: Sequence[str]
    state: State
    error: str = ""
    score: float | None = None
    result_sha256: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Keep it in ``folder``."""
        with atomic(folder / STATUS) as aside:
            aside.write_text(
                json.dumps({**asdict(self), "state": self.state.value}, indent=2, ensure_ascii=False) + "\n", "utf-8"
            )


def read_status(folder: Path) -> Status | None:
    """What became of the run in ``folder``; nothing where there was none."""
    if not (folder / STATUS).is_file():
        return None
    values = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    return Status(**{**values, "state": State(values["state"])})
