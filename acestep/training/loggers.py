"""Loggers that can be resumed: rows after the checkpoint's step are dropped, earlier ones are kept."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from acestep.audio.audio import Audio

COLUMNS = ("step", "name", "value")
TABLE = "metrics.csv"


class ResumableLogger(Logger):
    """Methods that a run calls on a logger, beyond Lightning's interface; the defaults do nothing."""

    def rewind(self, step: int) -> None:
        """Drop what was logged after ``step``, which the resumed run logs again."""

    def log_song(self, name: str, audio: Audio, step: int) -> None:
        """Log audio."""

    def close(self) -> None:
        """End the run."""


class TableLogger(ResumableLogger):
    """Writes ``metrics.csv`` with columns step, name and value; Lightning's CSVLogger deletes the file on a resume.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.path = Path(folder) / TABLE

    @property
    def name(self) -> str:
        return "table"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is in the run folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            if is_new:
                rows.writerow(COLUMNS)
            rows.writerows((step, name, f"{value:.7g}") for name, value in metrics.items() if name != "epoch")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop rows later than ``step``, which the resumed run writes again."""
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row["value"] and int(row["step"] or 0) <= step]
        aside = self.path.with_name(f".{self.path.name}")
        with aside.open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, COLUMNS)
            rows.writeheader()
            rows.writerows(kept)
        aside.replace(self.path)


def read_table(folder: Path) -> dict[str, dict[int, float]]:
    """Metrics in ``folder/metrics.csv``, by name and step; empty if there is no such file."""
    metrics: dict[str, dict[int, float]] = {}
    if (folder / TABLE).exists():
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                metrics.setdefault(row["name"], {})[int(row["step"])] = float(row["value"])
    return metrics


class TensorBoard(TensorBoardLogger, ResumableLogger):
    """TensorBoard event files in ``folder``, with audio.

    Args:
        folder: of the event files.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(save_dir=folder, name="", version="")

    def rewind(self, step: int) -> None:
        """Let TensorBoard drop events later than ``step``."""
        self._kwargs["purge_step"] = step + 1

    @rank_zero_only
    def log_song(self, name: str, audio: Audio, step: int) -> None:
        self.experiment.add_audio(name, audio.samples.mean(0), step, audio.sample_rate)


class WandB(WandbLogger, ResumableLogger):
    """Weights & Biases; a run folder is one run there, with the folder's name as its id.

    On a resume, Weights & Biases ignores steps that it has already.

    Args:
        folder: of the run; Weights & Biases' own files go there.
        project: the project's name.
        name: of the run in the project.
        offline: whether nothing is sent; the files can be uploaded later.
    """

    def __init__(self, folder: str, project: str, name: str, offline: bool) -> None:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        # Lightning's own `offline` sets WANDB_MODE, which a process that has used wandb before no longer reads.
        mode = "offline" if offline else None
        super().__init__(save_dir=folder, project=project, name=name, id=path.resolve().name, resume="allow", mode=mode)

    @rank_zero_only
    def log_song(self, name: str, audio: Audio, step: int) -> None:
        self.log_audio(name, [audio.samples.T.numpy()], step=step, sample_rate=[audio.sample_rate])

    @rank_zero_only
    def close(self) -> None:
        """Finish the run, so that the next one of a sweep is another."""
        if self._experiment is not None:
            self._experiment.finish()
