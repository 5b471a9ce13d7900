"""Which task a song is trained on this time: text-to-music, cover or repaint, and which span of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEXT2MUSIC = "text2music"


@dataclass(frozen=True)
class TaskDraw:
    """A task by its name in prompts, and the frames to make, first and one past the last; ``None`` makes all."""

    task: str = TEXT2MUSIC
    span: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """Shares of the tasks; what is left is text-to-music.

    Args:
        cover: share that starts from the song's own latents, through the 5 Hz codes.
        repaint: share in which a span is made and the rest is given.
        shortest: least share of the song that a repainted span takes.
        longest: largest share.
    """

    cover: float = 0.0
    repaint: float = 0.0
    shortest: float = 0.1
    longest: float = 0.6

    def __post_init__(self) -> None:
        if min(self.cover, self.repaint) < 0 or self.cover + self.repaint > 1:
            raise ValueError(
                f"data.tasks: cover={self.cover:g}, repaint={self.repaint:g}: need shares of at least 0, together at "
                "most 1"
            )
        if not 0 < self.shortest <= self.longest <= 1:
            raise ValueError(
                f"data.tasks: shortest={self.shortest:g}, longest={self.longest:g}: need 0 < shortest <= longest <= 1"
            )

    @property
    def mixes(self) -> bool:
        """Whether there is anything but text-to-music."""
        return self.cover + self.repaint > 0

    def __call__(self, frames: int, random: np.random.Generator) -> TaskDraw:
        """A task for a song of ``frames`` frames."""
        which, share, place = random.random(3)
        if which < self.cover:
            return TaskDraw("cover")
        if which >= self.cover + self.repaint:
            return TaskDraw()
        length = max(1, round(frames * (self.shortest + share * (self.longest - self.shortest))))
        first = int(place * (frames - length + 1))
        return TaskDraw("repaint", (first, first + length))
