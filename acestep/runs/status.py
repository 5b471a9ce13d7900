"""The state of a run: ``status.json`` in its folder, read when a sweep is resumed and reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from acestep.files import atomic, read_json

STATUS = "status.json"


class RunState(Enum):
    """A ``stopped`` run can be resumed; ``running`` is also the state that a killed run is left in."""

    running = "running"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """State and result of a run.

    Args:
        main: ``train`` or ``evaluate``.
        overrides: Hydra overrides of its command line.
        state: whether and how it ended.
        error: message of the error that ended it.
        score: the value that a search optimises.
        result_sha256: hash of each file in ``weights``, by name.
    """

    main: str
    overrides: Sequence[str]
    state: RunState
    error: str = ""
    score: float | None = None
    result_sha256: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        # Not write_json: the score of a diverged run may be NaN.
        text = json.dumps({**asdict(self), "state": self.state.value}, indent=2, ensure_ascii=False)
        with atomic(folder / STATUS) as aside:
            aside.write_text(text + "\n", "utf-8")


def read_status(folder: Path) -> RunStatus | None:
    """The status of the run in ``folder``; ``None`` where there is no run."""
    if not (folder / STATUS).is_file():
        return None
    values = read_json(folder / STATUS)
    return RunStatus(**{**values, "state": RunState(values["state"])})
