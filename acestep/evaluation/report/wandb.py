"""An evaluation as a Weights & Biases run: a table with a row and a player for each song, and the report."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

from acestep.evaluation.results import Results
from acestep.evaluation.sweep import CEILING

MAX_PLAYERS = 200


def song_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Column names and a row for each generated song; a missing score is ``None``."""
    columns = ["prompt", "take", "cell", "caption", "excluded", *results.columns]
    rows = [
        [row.prompt.id, row.take, row.point, row.prompt.song.caption, row.excluded or None]
        + [value if math.isfinite(value := row.scores.get(name, math.nan)) else None for name in results.columns]
        for row in results.rows
        if row.point != CEILING
    ]
    return columns, rows


def log_to_wandb(results: Results, report: Path, project: str) -> None:
    """Log songs, means and report as a run in ``project``; offline unless ``WANDB_MODE`` says otherwise.

    An offline run is kept beside the report, its recordings in W&B's staging folder (``WANDB_DATA_DIR``).

    Raises:
        ValueError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"wandb={project}: wandb is not installed ({error}); pip install 'acestep[wandb]'") from error
    mode: Literal["offline"] | None = None if "WANDB_MODE" in os.environ else "offline"
    with wandb.init(project=project, dir=str(report.parent), job_type="evaluation", mode=mode) as run:
        columns, rows = song_table(results)
        songs = [row for row in results.rows if row.point != CEILING]
        players = [
            wandb.Audio(str(row.path)) if row.path and number < MAX_PLAYERS else None
            for number, row in enumerate(songs)
        ]
        table = [[*row, player] for row, player in zip(rows, players, strict=True)]
        run.log({"songs": wandb.Table([*columns, "audio"], table), "report": wandb.Html(str(report))})
        run.summary.update({
            f"{point}/{name}": interval.mean
            for point in results.points
            for name in results.headlines
            if (interval := results.interval(name, point))
        })  # fmt: skip
