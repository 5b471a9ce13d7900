"""What the drawn tasks of a batch start from: their sources are the songs themselves, laid out as inference does it."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from acestep.conditioning.masks import Layout, lay_out
from acestep.conditioning.prompt import instruction
from acestep.data import LatentBatch, TaskDraw


def layouts(batch: LatentBatch, silence: Float[Tensor, "1 ts c"]) -> list[Layout] | None:
    """One layout for each song of ``batch``; ``None`` where all are text-to-music."""
    if all(draw == TaskDraw() for draw in batch.tasks):
        return None
    return [
        replace(
            lay_out(
                draw.task,
                None if draw == TaskDraw() else batch.mean[row, :frames].to(silence),
                silence,
                frames,
                draw.span,
            ),
            instruction=instruction(draw.task),
        )
        for row, (draw, frames) in enumerate(zip(batch.tasks, batch.frames, strict=True))
    ]
