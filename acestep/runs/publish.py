"""A finished run as a folder for the Hugging Face Hub: weights, config, model card, songs, licence; and its upload."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from acestep.adapters.io import is_adapter
from acestep.audio.audio import read_audio
from acestep.data.store import SETTINGS_FILE, LatentStore
from acestep.evaluation.report.html import encode_mp3, select_prompts
from acestep.evaluation.results import Results, read_results
from acestep.files import atomic, read_json
from acestep.page import markdown_table
from acestep.runs.record import read_record
from acestep.runs.status import RunState, read_status

NO_LICENCE = "unknown"
LOCAL_KEYS = ("run", "logger", "callbacks", "resume", "reproduce")
"""Parts of a config that name folders of one machine."""
USAGE = 'python infer.py weights=FOLDER_OR_HUB_ID song.caption="..." song.seconds=30 out=song.flac'
LICENCE_TEXT = (
    "Licence of these weights: {licence} (see https://huggingface.co/docs/hub/repositories-licenses).\n"
    "They were trained from {base}, whose own licence applies as well.\n"
)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A run to publish.

    Args:
        run: folder of a finished run.
        name: of the model; the run's if ``None``.
        licence: its identifier at the Hub.
        evaluation: folder of an evaluation, for metrics and songs; ``None`` takes the run's validation and samples.
        songs: number of songs to include.
    """

    run: Path
    name: str | None = None
    licence: str = NO_LICENCE
    evaluation: Path | None = None
    songs: int = 4

    def write(self, folder: Path) -> Path:
        """Write the folder, which must be new or empty, and return it.

        Raises:
            ValueError: if the run has not finished, or the folder holds files.
        """
        record, status = read_record(self.run), read_status(self.run)
        if not (self.run / "weights").is_dir() or (status and status.state is not RunState.finished):
            raise ValueError(f"{self.run}: has no finished weights; go on with the run before publishing it")
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"out={folder}: holds files; name a new or empty folder, or delete it")
        results = read_results(self.evaluation) if self.evaluation else None
        shutil.copytree(self.run / "weights", folder, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        songs = dict(self._write_songs(folder / "songs", results))
        base = _without_folders(str(record["config"]["weights"]))
        config = {key: value for key, value in record["config"].items() if key not in LOCAL_KEYS}
        texts = {
            "training_config.yaml": yaml.safe_dump(_without_folders(config), sort_keys=False),
            "README.md": self._model_card(record, base, is_adapter(folder), results, songs),
            "LICENSE": LICENCE_TEXT.format(licence=self.licence, base=base),
        }
        for name, text in texts.items():
            with atomic(folder / name) as aside:
                aside.write_text(text, encoding="utf-8")
        return folder

    def _model_card(
        self, record: Mapping[str, Any], base: str, has_adapter: bool, results: Results | None, songs: Mapping[str, str]
    ) -> str:
        """The card as Markdown with the Hub's metadata as front matter; ``songs`` are captions by file name."""
        metadata = ModelCardData(
            license=self.licence,
            library_name="acestep",
            pipeline_tag="text-to-audio",
            tags=["music", "ace-step", "text-to-music", *(["lora"] if has_adapter else [])],
            base_model=base if "/" in base else None,
        )
        kind = "An adapter for" if has_adapter else "A fine-tuned version of"
        players = [
            f'- <audio controls src="songs/{file}"></audio> {caption}'.rstrip() for file, caption in songs.items()
        ]
        parts = [
            f"---\n{metadata.to_yaml()}\n---",
            f"# {self.name or record['config'].get('name', self.run.name)}",
            f"{kind} `{base}` for music from text (ACE-Step v1.5), 48 kHz stereo.",
            f"```bash\n{USAGE}\n```",
            "## Songs",
            "\n".join(players) or "None were generated.",
            "## Metrics",
            _score_table(results) if results else _losses(self.run),
            "## Training data",
            _list(data_statement(record)),
            "Songs without a stated licence may not be free to train on; their publisher is responsible.",
            "## Training",
            _list(_training_facts(record)),
            "All settings are in `training_config.yaml`.",
            "## Licence",
            f"{self.licence}; see `LICENSE`. The licence of `{base}` applies as well.",
        ]
        return "\n\n".join(parts) + "\n"

    def _write_songs(self, folder: Path, results: Results | None) -> Iterator[tuple[str, str]]:
        """Write songs into ``folder``; yields file name and caption."""
        if results is None:
            for source in sorted((self.run / "samples").rglob("*.flac"))[-self.songs :]:
                yield _write_mp3(source, folder / f"{source.parent.name}_{source.stem}.mp3"), ""
            return
        best = results.best(results.headlines[0]) if results.headlines else results.points[0]
        rows = {row.prompt.id: row for row in results.rows if row.point == best and row.path and row.path.is_file()}
        for number, name in enumerate(name for name in select_prompts(results, self.songs) if name in rows):
            row = rows[name]
            assert row.path is not None
            yield _write_mp3(row.path, folder / f"{number:02d}.mp3"), row.prompt.song.caption


def push(folder: Path, repository: str) -> str:
    """Upload ``folder`` to ``repository`` (``OWNER/NAME``) of the Hub, which is created as private if it is new.

    Returns:
        URL of the upload.

    Raises:
        ValueError: without a licence, or where the Hub refuses.
    """
    if ModelCard.load(folder / "README.md").data.license == NO_LICENCE:
        raise ValueError("--licence: not given; name the licence of the weights (--licence mit) before pushing them")
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except HfHubHTTPError as error:
        raise ValueError(f"--push {repository}: {error}; is `hf auth login` done, and the name yours?") from error


def data_statement(record: Mapping[str, Any]) -> dict[str, str]:
    """The training data by topic: from the run's record, and from its latent store where that still exists."""
    data = record.get("data", {})
    topics = {"songs": f"{data.get('songs', 'unknown')} to train on, {data.get('held_out', 0)} held out"}
    folder = Path(str(data.get("path", "")))
    if (folder / SETTINGS_FILE).is_file():
        store = LatentStore(folder)
        hours = sum(store.frames.tolist()) / store.frames_per_second / 3600
        topics["duration"] = f"{hours:.2f} hours"
        for topic, column in (("languages", "language"), ("licences", "licence")):
            counts = Counter(value or "not stated" for value in store.column(column)).most_common(8)
            topics[topic] = ", ".join(f"{name} ({count})" for name, count in counts)
    return topics


def _losses(run: Path) -> str:
    path = run / "validation.json"
    losses = read_json(path)["val_loss"] if path.is_file() else {}
    values = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return f"Not evaluated on songs. Validation loss: {values or 'not recorded'}."


def _score_table(results: Results) -> str:
    """Every headline score with its interval at its best sweep point, and every set distance."""
    rows: list[list[object]] = []
    for column in results.headlines:
        best = results.best(column)
        if one := results.interval(column, best):
            rows.append([column, f"{one.mean:.3f}", f"{one.low:.3f} to {one.high:.3f}", one.n, best])
    for point, metrics in results.sets.items():
        for metric, values in metrics.items():
            name, value = next(iter(values.items()))
            rows.append([f"{metric}.{name}", f"{value:.4g}", "", "", point])
    return markdown_table(["metric", "mean", "95 % interval", "prompts", "sweep point"], rows)


def _training_facts(record: Mapping[str, Any]) -> dict[str, object]:
    config, git = record["config"], record["git"]
    return {
        "run": record["identity"],
        "steps": (config.get("trainer") or {}).get("max_steps"),
        "seed": record["seed"],
        "optimizer": str((config.get("optimizer") or {}).get("_target_", "")).rpartition(".")[2],
        "code": f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}",
        "torch": record["packages"].get("torch"),
    }


def _list(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _without_folders(value: Any) -> Any:
    """``value`` with every absolute path reduced to its last part, since paths of a machine are private."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _write_mp3(source: Path, target: Path) -> str:
    with atomic(target) as aside:
        aside.write_bytes(encode_mp3(read_audio(source)))
    return target.name
