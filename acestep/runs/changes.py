"""What differs between two runs' records, or between a record and this machine: each by name, then and now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acestep.runs.record import hash_files, here, read_data_files, read_record

MOST_NAMED = 8
"""Files or packages in one line."""


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each thing that decides a result and is not the same in both records."""
    found = [
        f"config: {key} was {theirs}, is {ours}"
        for key, (theirs, ours) in _different(_plain_config(then), _plain_config(now)).items()
    ]
    found += [
        f"{what}: was {then.get(what)}, is {now.get(what)}" for what in ("seed", "python") if _moved(then, now, what)
    ]
    if _moved(then, now, "weights_sha256"):
        found.append("weights: the files that training starts from have changed")
    # What was installed since was not there to be used.
    versions = _different(then["packages"], {name: now["packages"].get(name) for name in then["packages"]})
    found += [f"package {name}: was {theirs}, is {ours or 'absent'}" for name, (theirs, ours) in versions.items()]
    if _moved(then, now, "prompts_sha256"):
        found.append("prompts: words or recordings have changed")
    if _moved(then, now, "code_sha256"):
        found.append(f"code: source or config files are not those of then (commit {_short(then)}, now {_short(now)})")
    return found


def tree_notes(then: Mapping[str, Any], folder: Path) -> list[str]:
    """Whether a run was started from files that no commit holds."""
    if not then["git"]["dirty"]:
        return []
    return [f"the run was started from a changed tree: {_short(then)} and {folder / 'code.diff'}"]


def data_changes(folder: Path, now: Mapping[str, str] | None = None) -> list[str]:
    """The data files of the run in ``folder`` that are not what it read; ``now`` are hashes, if there are any yet."""
    then = read_data_files(folder)
    if not then:
        return []
    if now is None:
        place = Path(read_record(folder)["config"]["data"]["path"])
        if not place.is_dir():
            return [f"data: {place} is no longer there"]
        now = hash_files(place)
    moved = _different(then, now)
    if not moved:
        return []
    names = ", ".join(list(moved)[:MOST_NAMED])
    more = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
    return [f"data: {len(moved)} of {len(then)} files changed, came or went: {names}{more}"]


def package_changes(then: Mapping[str, Any]) -> list[str]:
    """Packages and Python of this machine that differ from the record's."""
    now = {**then, **{key: value for key, value in here().items() if key in ("python", "packages")}}
    return changes(then, now)


def same_kind(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both ran on machines of which equal bits may be asked."""
    keys = ("machine", "platform")
    return all(then.get(key) == now.get(key) for key in keys) and then["packages"].get("torch") == now["packages"].get(
        "torch"
    )


def _moved(then: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    return key in then and key in now and then[key] != now[key]


def _short(record: Mapping[str, Any]) -> str:
    return str(record["git"]["commit"])[:12]


def _plain_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config by full key, the run's own folder and what is told elsewhere taken out."""
    folder = record.get("folder", "")
    flat = _flat(record["config"])
    return {
        key: value.replace(folder, "DIR") if folder and isinstance(value, str) else value
        for key, value in flat.items()
        if key != "seed"
    }


def _flat(container: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(container, Mapping) or not container:
        return {prefix: container}
    parts = (_flat(value, f"{prefix}.{key}" if prefix else key) for key, value in container.items())
    return {key: value for part in parts for key, value in part.items()}


def _different(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = sorted(then.keys() | now.keys())
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}
