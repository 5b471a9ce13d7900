"""A finished run as a folder for the Hugging Face Hub: weights, config, card, songs, licence; pushed when told to."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acestep.adapters.io import is_adapter
from acestep.audio.audio import read_audio
from acestep.data.settings import SETTINGS_FILE
from acestep.evaluation.joined import read_results
from acestep.evaluation.report.html import chosen, mp3
from acestep.evaluation.results import Results
from acestep.files import atomic
from acestep.runs.model_card import Card, model_card
from acestep.runs.record import read_record
from acestep.runs.status import State, read_status

NO_LICENCE = "unknown"
LOCAL = ("run", "logger", "callbacks", "resume", "reproduce")
"""Parts of a config that speak of one machine's folders."""
LICENCE_TEXT = (
    "Licence of these weights: {licence} (see https://huggingface.co/docs/hub/repositories-licenses).\n"
    "They were trained from {base}, whose own licence applies as well.\n"
)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is to be published.

    Args:
        run: folder of a finished run.
        name: of the model; the run's if ``None``.
        licence: the Hub's name of it.
        evaluation: folder of an evaluation, for metrics and songs; ``None`` takes the run's validation and samples.
        songs: how many to hear.
    """

    run: Path
    name: str | None = None
    licence: str = NO_LICENCE
    evaluation: Path | None = None
    songs: int = 4

    def write(self, folder: Path) -> Path:
        """Write the folder, which must be new or empty, and return it.

        Raises:
            ValueError: if the run has not finished, or the folder holds something else.
        """
        record, status = read_record(self.run), read_status(self.run)
        if not (self.run / "weights").is_dir() or (status and status.state is not State.finished):
            raise ValueError(f"{self.run}: has no finished weights; go on with the run before publishing it")
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"out={folder}: holds files; name a new or empty folder, or delete it")
        results = read_results(self.evaluation) if self.evaluation else None
        shutil.copytree(self.run / "weights", folder, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        config = {key: value for key, value in record["config"].items() if key not in LOCAL}
        _write(folder / "training_config.yaml", yaml.safe_dump(_without_folders(config), sort_keys=False))
        card = Card(
            name=self.name or str(record["config"].get("name", self.run.name)),
            licence=self.licence,
            base=_without_folders(str(record["config"]["weights"])),
            is_adapter=is_adapter(folder),
            record=record,
            data=statement(record),
            losses=_losses(self.run),
            results=results,
            songs=dict(self._songs(folder / "songs", results)),
        )
        _write(folder / "README.md", model_card(card))
        _write(folder / "LICENSE", LICENCE_TEXT.format(licence=self.licence, base=card.base))
        return folder

    def _songs(self, folder: Path, results: Results | None) -> Iterator[tuple[str, str]]:
        """Songs written to ``folder``: file name and caption."""
        if results is None:
            for source in sorted((self.run / "samples").rglob("*.flac"))[-self.songs :]:
                yield _mp3(source, folder / f"{source.parent.name}_{source.stem}.mp3"), ""
            return
        best = results.best(results.headlines[0]) if results.headlines else results.cells[0]
        found = {row.prompt.id: row for row in results.rows if row.cell == best and row.path and row.path.is_file()}
        for number, name in enumerate(name for name in chosen(results, self.songs) if name in found):
            row = found[name]
            yield _mp3(row.path, folder / f"{number:02d}.mp3"), row.prompt.song.caption


def push(folder: Path, repository: str) -> str:
    """Upload ``folder`` to ``repository`` (``OWNER/NAME``) of the Hub, a private one where it is new.

    Returns:
        Its address.

    Raises:
        ValueError: without a licence, or where the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    card = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    if card["license"] == NO_LICENCE:
        raise ValueError("--licence: not given; name the licence of the weights (--licence mit) before pushing them")
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except HfHubHTTPError as error:
        raise ValueError(f"--push {repository}: {error}; is `hf auth login` done, and the name yours?") from error


def statement(record: Mapping[str, Any]) -> dict[str, str]:
    """What the run was trained on: from its record, and from the store where that is still there."""
    data = record.get("data", {})
    said = {"songs": f"{data.get('songs', 'unknown')} to train on, {data.get('held_out', 0)} held out"}
    folder = Path(str(data.get("path", "")))
    if (folder / SETTINGS_FILE).is_file():
        from acestep.data.store import LatentStore

        store = LatentStore(folder)
        hours = sum(store.frames.tolist()) / store.frames_per_second / 3600
        said["duration"] = f"{hours:.2f} hours"
        said["languages"] = _counted(store.column("language"))
        said["licences"] = _counted(store.column("licence"))
    return said


def _counted(values: list[Any]) -> str:
    found = Counter(value or "not stated" for value in values)
    return ", ".join(f"{name} ({count})" for name, count in found.most_common(8))


def _losses(run: Path) -> dict[str, float]:
    path = run / "validation.json"
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["val_loss"] if path.is_file() else {}
    return found


def _without_folders(value: Any) -> Any:
    """``value`` with every absolute path cut to its last part: where a file lay is nobody's business."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _mp3(source: Path, target: Path) -> str:
    with atomic(target) as aside:
        aside.write_bytes(mp3(read_audio(source)))
    return target.name


def _write(path: Path, text: str) -> None:
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")
