"""What a task leaves to the DiT of the audio it starts from: source latents, what to generate, whether it is a cover.

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
class Layout:
    """One song's share of the DiT's context.

    Attributes:
        source: latents to start from; silence where there is nothing to keep.
        generate: True on frames to make, False on those to keep: the chunk mask, and where only a span is made also
            ``flow.tasks.Repaint``'s mask.
        is_cover: whether the 5 Hz codes of ``source`` (or given ones) replace it.
        instruction: the line of the prompt that names the task.
        references: latents of the recordings whose timbre to take; ``None`` is silence, which stands for "none".
    """

    source: Float[Tensor, "t c"]
    generate: Bool[Tensor, " t"]
    is_cover: bool
    instruction: str = TEXT2MUSIC
    references: Float[Tensor, "n r c"] | None = None


def lay_out(
    task: str,
    latents: Float[Tensor, "t c"] | None,
    silence: Float[Tensor, "1 ts c"],
    frames: int,
    span: tuple[int, int] | None = None,
    has_codes: bool = False,
) -> Layout:
    """The layout of a song of ``frames`` frames.

    Args:
        task: ``text2music``, ``cover``, ``cover-nofsq``, ``repaint``, ``lego``, ``extract`` or ``complete``.
        latents: of the audio to start from; ``None`` or all of them ``silence`` where there is none.
        silence: latents of digital silence.
        frames: the song's length.
        span: frames to make, first and one past the last (see ``span_of``); ``None`` makes all. Within it the source
            is silence, but for ``lego``, which hears what it plays along with.
        has_codes: whether audio codes are given.
    """
    quiet = tiled(silence, frames)[0]
    source = quiet if latents is None else latents
    if span is None:
        return Layout(source, torch.ones(frames, dtype=torch.bool), task == "cover" or has_codes)
    at = torch.arange(frames)
    inside = (at >= span[0]) & (at < span[1])
    if task != "lego":
        source = torch.where(inside[:, None].to(source.device), quiet.to(source), source)
    return Layout(source, inside, is_cover=False)


def span_of(
    start: float | None, end: float | None, frames: int, sample_rate: int = 48_000, hop: int = 1920
) -> tuple[int, int] | None:
    """The frames between two times in seconds, at least one; ``None`` if ``end`` does not come after ``start``.

    A start before the song moves both by as much, since that much silence is put before it; an ``end`` left out or
    negative is the song's.
    """
    start = start or 0.0
    before = max(0.0, -start)
    start += before
    end = frames_to_seconds(frames, sample_rate, hop) if end is None or end < 0 else end + before
    if end <= start:
        return None
    first = min(seconds_to_frames(start, sample_rate, hop), frames - 1)
    return first, min(max(seconds_to_frames(end, sample_rate, hop), first + 1), frames)


def tiled(silence: Float[Tensor, "1 ts c"], frames: int) -> Float[Tensor, "1 t c"]:
    """The first ``frames`` frames of ``silence``, repeated from its start where it is too short (upstream tiles)."""
    repeats = -(-frames // silence.shape[1])
    return silence.repeat(1, max(repeats, 1), 1)[:, :frames]
