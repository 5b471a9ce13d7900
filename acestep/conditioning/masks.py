"""The DiT's context for each task: source latents, the mask of frames to generate, and whether it is a cover.

Source: upstream ``conditioning_masks.py`` (``_build_chunk_masks_and_src_latents``). ``flow.tasks`` has what a task
changes in the sampler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.conditioning.prompt import TEXT2MUSIC
from acestep.units import frames_to_seconds, seconds_to_frames


@dataclass(frozen=True)
class TaskContext:
    """The DiT's context for one song.

    Attributes:
        source: latents to start from; silence where there are none.
        generate: True on frames to generate, False on frames to keep: the chunk mask, and for repainting also the mask
            of ``flow.tasks.Repaint``.
        is_cover: replace ``source`` by its 5 Hz codes, or by given codes.
        instruction: the prompt's line that names the task.
        references: latents of recordings with the wanted timbre; ``None`` is replaced by silence.
    """

    source: Float[Tensor, "t c"]
    generate: Bool[Tensor, " t"]
    is_cover: bool
    instruction: str = TEXT2MUSIC
    references: Float[Tensor, "n r c"] | None = None


def task_context(
    task: str,
    latents: Float[Tensor, "t c"] | None,
    silence: Float[Tensor, "1 ts c"],
    frames: int,
    span: tuple[int, int] | None = None,
    has_codes: bool = False,
) -> TaskContext:
    """The context of a song of ``frames`` frames.

    Args:
        task: ``text2music``, ``cover``, ``cover-nofsq``, ``repaint``, ``lego``, ``extract`` or ``complete``.
        latents: of the source audio; ``None`` for silence.
        silence: latents of digital silence.
        frames: the song's length.
        span: frames to generate, first and one past the last (see ``repaint_span``); ``None`` generates all. The source
            is silent within the span, except for ``lego``, which adds a track to it.
        has_codes: whether audio codes are given.
    """
    silent = tile_silence(silence, frames)[0]
    source = silent if latents is None else latents
    if span is None:
        return TaskContext(source, torch.ones(frames, dtype=torch.bool), task == "cover" or has_codes)
    at = torch.arange(frames)
    inside = (at >= span[0]) & (at < span[1])
    if task != "lego":
        source = torch.where(inside[:, None].to(source.device), silent.to(source), source)
    return TaskContext(source, inside, is_cover=False)


def repaint_span(
    start: float | None, end: float | None, frames: int, sample_rate: int = 48_000, hop: int = 1920
) -> tuple[int, int] | None:
    """The frames between two times in seconds, at least one; ``None`` if ``end`` is not after ``start``.

    A negative ``start`` means that so much silence is put before the song, which shifts both times. ``end=None`` or
    negative is the song's end.
    """
    start = start or 0.0
    before = max(0.0, -start)
    start += before
    end = frames_to_seconds(frames, sample_rate, hop) if end is None or end < 0 else end + before
    if end <= start:
        return None
    first = min(seconds_to_frames(start, sample_rate, hop), frames - 1)
    return first, min(max(seconds_to_frames(end, sample_rate, hop), first + 1), frames)


def tile_silence(silence: Float[Tensor, "1 ts c"], frames: int) -> Float[Tensor, "1 t c"]:
    """The first ``frames`` frames of ``silence``, repeated where it is too short, as upstream does."""
    repeats = -(-frames // silence.shape[1])
    return silence.repeat(1, max(repeats, 1), 1)[:, :frames]
