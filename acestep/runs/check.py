"""Is a run still what it was: its result, its data, the weights that it started from, the packages around it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acestep.pipeline.build import fingerprint
from acestep.runs.changes import data_changes, package_changes, tree_notes
from acestep.runs.record import RECORD, hash_files, read_record
from acestep.runs.status import State, read_status


@dataclass(frozen=True)
class Checked:
    """What ``check`` found.

    Attributes:
        broken: what is no longer what the run read or wrote.
        moved: what would be another thing if the run were done again here; the result itself is whole.
        notes: what is worth knowing, and no fault.
    """

    broken: list[str]
    moved: list[str]
    notes: list[str]

    @property
    def whole(self) -> bool:
        """Whether the run, done again here, would be the same run."""
        return not (self.broken or self.moved)

    def lines(self) -> list[str]:
        """For a person."""
        said = [f"note: {line}" for line in self.notes] + [f"changed: {line}" for line in (*self.broken, *self.moved)]
        return said if not self.whole else [*said, "run          as it was: result, data, weights, packages"]


def is_run(folder: Path) -> bool:
    """Whether a run wrote ``folder``."""
    return (folder / RECORD).is_file()


def check(folder: Path) -> Checked:
    """Hash what the run in ``folder`` read and wrote, and look at what is installed here."""
    record, status = read_record(folder), read_status(folder)
    notes = tree_notes(record, folder)
    if status is None or status.state is not State.finished:
        notes.append(f"the run did not finish{f': {status.error}' if status and status.error else ''}")
    broken = data_changes(folder)
    if status and status.result_sha256:
        now = hash_files(folder / "weights")
        moved = sorted(name for name in status.result_sha256 if now.get(name) != status.result_sha256[name])
        broken += [f"result: weights/{name} is not what the run wrote" for name in moved]
    if "weights_sha256" in record:
        broken += _start(record["config"]["weights"], record["weights_sha256"])
    return Checked(broken, package_changes(record), notes)


def _start(weights: str | list[str], then: str) -> list[str]:
    names = weights if isinstance(weights, list) else [weights]
    try:
        now = ", ".join(fingerprint(name) for name in names)
    except (ValueError, OSError):
        return [f"weights: {', '.join(names)} can no longer be opened"]
    return [] if now == then else [f"weights: {', '.join(names)} is not what the run started from"]
