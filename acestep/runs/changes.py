"""Changes between two runs, or between a run and this machine now, as lines that name both values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acestep.pipeline.build import weights_fingerprint
from acestep.runs.record import RECORD, environment, hash_files, read_data_files, read_record
from acestep.runs.status import RunState, read_status

MAX_NAMES = 8
"""Files named in one line."""
UNCHANGED = "run          as it was: result, data, weights, packages"


def record_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each input of a run that differs between two records."""

    def differs(key: str) -> bool:
        return key in old and key in new and old[key] != new[key]

    lines = [
        f"config: {key} was {before}, is {after}"
        for key, (before, after) in _differences(_comparable_config(old), _comparable_config(new)).items()
    ]
    lines += [f"{key}: was {old[key]}, is {new[key]}" for key in ("seed", "python") if differs(key)]
    if differs("weights_sha256"):
        lines.append("weights: the files that training starts from have changed")
    # Packages that were installed only later cannot have been used.
    versions = _differences(old["packages"], {name: new["packages"].get(name) for name in old["packages"]})
    lines += [f"package {name}: was {before}, is {after or 'absent'}" for name, (before, after) in versions.items()]
    if differs("prompts_sha256"):
        lines.append("prompts: texts or recordings have changed")
    if differs("code_sha256"):
        commits = f"commit {_short_commit(old)}, now {_short_commit(new)}"
        lines.append(f"code: source or config files have changed ({commits})")
    return lines


def tree_notes(record: Mapping[str, Any], folder: Path) -> list[str]:
    """A line where the run was started from uncommitted changes."""
    if not record["git"]["dirty"]:
        return []
    return [f"the run was started from a changed tree: {_short_commit(record)} and {folder / 'code.diff'}"]


def data_changes(folder: Path, hashes: Mapping[str, str] | None = None) -> list[str]:
    """A line where the data files of the run in ``folder`` have changed; ``hashes`` of the files save reading them."""
    old = read_data_files(folder)
    if not old:
        return []
    if hashes is None:
        path = Path(read_record(folder)["config"]["data"]["path"])
        if not path.is_dir():
            return [f"data: {path} is no longer there"]
        hashes = hash_files(path)
    names = list(_differences(old, hashes))
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return [
        f"data: {len(names)} of {len(old)} files changed, were added or removed: {', '.join(names[:MAX_NAMES])}{more}"
    ]


def package_changes(record: Mapping[str, Any]) -> list[str]:
    """Lines for packages and Python of this machine that differ from the record's."""
    return record_changes(record, {**record, **{key: environment()[key] for key in ("python", "packages")}})


def same_machine_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether both runs had the same machine, platform and torch, so that bitwise equality can be expected."""
    keys = ("machine", "platform")
    has_same_torch = old["packages"].get("torch") == new["packages"].get("torch")
    return has_same_torch and all(old.get(key) == new.get(key) for key in keys)


def _flatten(container: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings, by dotted key."""
    if not isinstance(container, Mapping) or not container:
        return {prefix: container}
    parts = (_flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in container.items())
    return {key: value for part in parts for key, value in part.items()}


def is_run(folder: Path) -> bool:
    """Whether a run wrote ``folder``."""
    return (folder / RECORD).is_file()


def verify_run(folder: Path) -> tuple[list[str], bool]:
    """Hash the files that the run in ``folder`` read and wrote, and compare the installed packages.

    Returns:
        Lines to print, and whether nothing has changed.
    """
    record, status = read_record(folder), read_status(folder)
    notes = tree_notes(record, folder)
    if status is None or status.state is not RunState.finished:
        notes.append(f"the run did not finish{f': {status.error}' if status and status.error else ''}")
    changes = data_changes(folder)
    if status and status.result_sha256:
        hashes = hash_files(folder / "weights")
        names = sorted(name for name in status.result_sha256 if hashes.get(name) != status.result_sha256[name])
        changes += [f"result: weights/{name} is not what the run wrote" for name in names]
    if "weights_sha256" in record:
        changes += _weight_changes(record["config"]["weights"], record["weights_sha256"])
    changes += package_changes(record)
    lines = [f"note: {line}" for line in notes] + [f"changed: {line}" for line in changes]
    return lines + [UNCHANGED] * (not changes), not changes


def _weight_changes(weights: str | list[str], expected: str) -> list[str]:
    names = weights if isinstance(weights, list) else [weights]
    try:
        actual = ", ".join(weights_fingerprint(name) for name in names)
    except (ValueError, OSError):
        return [f"weights: {', '.join(names)} can no longer be opened"]
    return [] if actual == expected else [f"weights: {', '.join(names)} is not what the run started from"]


def _short_commit(record: Mapping[str, Any]) -> str:
    return str(record["git"]["commit"])[:12]


def _comparable_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config by dotted key, without the seed, which has a line of its own, and the run's folder."""
    folder = record.get("folder", "")
    return {
        key: value.replace(folder, "DIR") if folder and isinstance(value, str) else value
        for key, value in _flatten(record["config"]).items()
        if key != "seed"
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
