"""An evaluation at Weights & Biases: one table with a row and a player for each song, and the report."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from acestep.evaluation.results import Results
from acestep.evaluation.sweep import CEILING

MOST_PLAYERS = 200


def rows_of(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Column names and a row for each generated song; a score that a song does not have is ``None``."""
    columns = ["prompt", "take", "cell", "caption", "excluded", *results.columns]
    rows = [
        [row.prompt.id, row.take, row.cell, row.prompt.song.caption, row.excluded or None]
        + [value if math.isfinite(value := row.scores.get(name, math.nan)) else None for name in results.columns]
        for row in results.rows
        if row.cell != CEILING
    ]
    return columns, rows


def log_to_wandb(results: Results, report: Path, project: str) -> None:
    """Log songs, means and report as a run in ``project``, kept beside the report; offline unless told to upload.

    Until then the recordings wait where W&B stages its artifacts (``WANDB_DATA_DIR``).

    Raises:
        ValueError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"wandb={project}: wandb is not installed ({error}); pip install 'acestep[wandb]'") from error
    mode = os.environ.get("WANDB_MODE", "offline")
    with wandb.init(project=project, dir=str(report.parent), job_type="evaluation", mode=mode) as run:
        columns, rows = rows_of(results)
        songs = [row for row in results.rows if row.cell != CEILING]
        players = [
            wandb.Audio(str(row.path)) if row.path and number < MOST_PLAYERS else None
            for number, row in enumerate(songs)
        ]
        table = [[*row, player] for row, player in zip(rows, players, strict=True)]
        run.log({"songs": wandb.Table([*columns, "audio"], table), "report": wandb.Html(str(report))})
        run.summary.update({
            f"{cell}/{name}": found.mean
            for cell in results.cells
            for name in results.headlines
            if (found := results.interval(name, cell))
        })  # fmt: skip
