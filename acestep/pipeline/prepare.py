"""From what a request says to what the networks and the sampler take: recordings to latents, tasks to contexts.

Source: upstream ``conditioning_masks.py``, ``io_audio.py``, ``generate_music_execute.py`` and
``repaint_waveform_splice.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import soundfile
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio, read_audio
from acestep.conditioning.masks import Layout, lay_out, span_of, tiled
from acestep.conditioning.prompt import TEXT2MUSIC, instruction
from acestep.data.encode import fitted
from acestep.flow.noise import Retake, song_generators
from acestep.flow.tasks import CoverStart, CoverSwitch, Repaint, Task
from acestep.planner.hints import planned_layout
from acestep.songs.checks import lead_in
from acestep.songs.song import SHOWN, shown
from acestep.types import Autoencoder, Conditions, Request, Song
from acestep.units import frames_to_seconds, seconds_to_frames, seconds_to_samples
from acestep.weights.checkpoint import Lengths

SILENT = 1e-6
"""Below this everywhere, a recording is digital silence (upstream)."""
CROSSFADE_FRAMES = 25
SPLICE_SECONDS = 0.05
"""Both at ``repaint_strength`` 0; they shrink to nothing at 1, and so does the share of injected steps."""

Encode = Callable[[Audio], Float[Tensor, "t c"]]
Hint = Callable[[Sequence[int]], Float[Tensor, "t c"]]


@dataclass(frozen=True)
class Prepared:
    """One song, ready to be made.

    Attributes:
        song: as resolved.
        frames: its length.
        layout: what the networks read of audio and task.
        plain: the same without the source, to switch to; ``None`` where nothing switches.
        clean: latents of the source; ``None`` where there is none.
        span: frames to make, where only a part is.
        recording: the source at the autoencoder's rate; ``None`` where the result takes none of its samples.
    """

    song: Song
    frames: int
    layout: Layout
    plain: Layout | None = None
    clean: Float[Tensor, "t c"] | None = None
    span: tuple[int, int] | None = None
    recording: Float[Tensor, "a s"] | None = None


def source_seconds(song: Request, lengths: Lengths, sample_rate: int, hop: int) -> float:
    """How long the song lasts that ``song.source`` and the span around it make; reads the recording's header only."""
    with _named("source", song.source):
        info = soundfile.info(song.source)
        if info.frames < 1:
            raise ValueError("has no samples; name a recording")
    own = math.ceil(info.frames * sample_rate / info.samplerate)
    if (song.start or 0.0) > own / sample_rate:
        raise ValueError(f"song.start={song.start:g}: the source is {own / sample_rate:.2f} s long; begin inside it")
    frames = (own + sum(_around(song, own, sample_rate))) // hop
    key = "source" if song.end is None else "end"
    key = "start" if song.start is not None and song.start < 0 else key
    seconds = lengths.check(frames_to_seconds(frames, sample_rate, hop), f"{key}={getattr(song, key)}")
    if song.seconds is not None and seconds_to_frames(song.seconds, sample_rate, hop) != frames:
        raise ValueError(
            f"song.seconds={song.seconds:g}: task {song.task} lasts as its source does, {seconds:g} s; leave it out"
        )
    return seconds


def prepare(
    song: Song,
    frames: int,
    autoencoder: Autoencoder,
    silence: Tensor,
    reference_frames: int,
    encode: Encode,
    hint: Hint,
) -> Prepared:
    """Read what ``song`` names and lay it out; ``encode`` gives the mean latents of audio, ``hint`` those of codes."""
    words = lay_out("text2music", None, silence, frames)
    if not isinstance(song, Request):
        return Prepared(song, frames, words)
    references = _references(song, autoencoder, reference_frames, encode)
    words = replace(words, references=references)
    if song.codes:
        planned = replace(planned_layout(hint(song.codes), silence, frames), references=references)
        return Prepared(song, frames, planned, words if song.cover_strength < 1 else None)
    if song.source is None:
        return Prepared(song, frames, words)
    samples = _recording(song, autoencoder)
    is_silent = float(samples.abs().max()) < SILENT
    clean = tiled(silence, frames)[0] if is_silent else encode(Audio(samples, autoencoder.sample_rate)).to(silence)
    if len(clean) != frames:
        raise ValueError(f"song.source={song.source}: ends before its header says; write it anew")
    if song.task == "edit":
        # The source's own context would hold the edit back (upstream): both flows hear silence and the words.
        return Prepared(song, frames, words, clean=clean)
    is_part = song.start is not None or song.end is not None
    span = span_of(song.start, song.end, frames, autoencoder.sample_rate, autoencoder.hop) if is_part else None
    layout = replace(
        lay_out(song.task, clean, silence, frames, span),
        instruction=instruction(song.task, song.tracks),
        references=references,
    )
    plain = replace(layout, source=tiled(silence, frames)[0], is_cover=False, instruction=TEXT2MUSIC)
    recording = samples if span and song.splice == "source" else None
    return Prepared(song, frames, layout, plain if song.cover_strength < 1 else None, clean, span, recording)


def batches(songs: Sequence[Song], size: int) -> Iterator[list[Song]]:
    """``songs`` in order, up to ``size`` at a time; only such as the sampler treats alike share a batch."""
    for _, alike in groupby(songs, _treatment):
        group = list(alike)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def sampler_task(
    batch: Sequence[Prepared], frames: int, conditions: Conditions | None, null: Conditions | None, device: torch.device
) -> Task:
    """What ``batch`` adds to plain generation; ``conditions`` and ``null`` are those to switch to."""
    first = batch[0].song
    if not isinstance(first, Request):
        return Task()
    switch = CoverSwitch(conditions=conditions, null=null, strength=first.cover_strength) if conditions else None
    if batch[0].clean is None:
        return Task(switch=switch)
    clean, repaint = sources(batch, device), None
    if batch[0].span:
        at = torch.arange(frames)
        masks = [(at >= item.span[0]) & (at < item.span[1]) for item in batch if item.span]
        repaint = Repaint(
            mask=torch.stack(masks).to(device),
            clean=clean,
            injection_ratio=1 - first.repaint_strength,
            crossfade_frames=_crossfade(first),
        )
    return Task(
        start=CoverStart(source=clean, strength=first.source_strength) if first.source_strength > 0 else None,
        switch=switch,
        repaint=repaint,
    )


def sources(batch: Sequence[Prepared], device: torch.device) -> Float[Tensor, "b t c"]:
    """Latents of what the songs start from, padded to the longest."""
    return torch.nn.utils.rnn.pad_sequence([item.clean for item in batch], batch_first=True).to(device)


def retaken(noise: Float[Tensor, "b t c"], batch: Sequence[Prepared]) -> Float[Tensor, "b t c"]:
    """``noise``, mixed with another take's where a song asks for it."""
    rows = list(noise)
    for row, item in enumerate(batch):
        song = item.song
        if isinstance(song, Request) and song.retake > 0:
            (generator,) = song_generators([song.retake_seed])
            other = torch.randn(item.frames, noise.shape[-1], generator=generator).to(noise)
            rows[row] = rows[row].clone()
            rows[row][: item.frames] = Retake(variance=song.retake)(rows[row][None, : item.frames], other[None])[0]
    return torch.stack(rows)


def called(song: Song) -> str:
    """What messages call ``song``: by its name, or else its seed."""
    return song.name if isinstance(song, Request) and song.name else f"song.seed={song.seed}"


def keeps_source(song: Song) -> bool:
    """Whether a part of the result is to be the source's, and so at its level."""
    is_part = isinstance(song, Request) and (song.start is not None or song.end is not None)
    return is_part and song.splice != "none"


def spliced(
    made: Float[Tensor, "a s"], item: Prepared, autoencoder: Autoencoder, decode: Callable[[Tensor], Tensor]
) -> Float[Tensor, "a s"]:
    """``made`` with what it is to keep of its source put back, cross-faded; ``decode`` gives the samples of latents."""
    song = item.song
    if item.span is None or not isinstance(song, Request) or not keeps_source(song):
        return made
    fade = int(SPLICE_SECONDS * (1 - song.repaint_strength) * autoencoder.sample_rate)
    reach = _crossfade(song) * autoencoder.hop
    first, end = (edge * autoencoder.hop for edge in item.span)
    # A new part that is too loud is turned down by itself: the rest of the song keeps its level.
    heard = made[:, max(first - reach - fade, 0) : end + reach + fade]
    made = made / heard.abs().max().clamp_min(1)
    if item.recording is not None:
        return crossfaded(made, item.recording.to(made)[:, : made.shape[1]], first, end, fade)
    # The decoder hears the latents' own cross-fade: what lies beyond it is to be the source's, to the sample.
    kept = decode(item.clean[None])[0].to(made)
    first, end = max(first - reach, 0), min(end + reach, made.shape[1])
    return crossfaded(made, kept, first + fade if first else 0, end - fade if end < made.shape[1] else end, fade)


def crossfaded(
    made: Float[Tensor, "a s"], kept: Float[Tensor, "a s"], first: int, end: int, fade: int
) -> Float[Tensor, "a s"]:
    """``made`` from sample ``first`` to before ``end``, ``kept`` outside, with ramps of ``fade`` on the kept side."""
    weight = torch.zeros(made.shape[1])
    weight[first:end] = 1
    before, after = min(fade, first), min(fade, made.shape[1] - end)
    weight[first - before : first] = torch.linspace(0, 1, before + 2)[1:-1]
    weight[end : end + after] = torch.linspace(1, 0, after + 2)[1:-1]
    return weight * made + (1 - weight) * kept


def _treatment(song: Song) -> Hashable:
    """Songs of one batch share all that the sampler knows once a batch."""
    if not isinstance(song, Request):
        return None
    part = (song.seconds, song.repaint_strength) if song.start is not None or song.end is not None else None
    edit = (song.edit_start, song.edit_stop, song.edit_draws) if song.task == "edit" else None
    return bool(song.source), bool(song.codes), song.cover_strength, song.source_strength, part, edit, song.adapters


def _crossfade(song: Request) -> int:
    return round(CROSSFADE_FRAMES * (1 - song.repaint_strength))


def _around(song: Request, own: int, sample_rate: int) -> tuple[int, int]:
    """Samples of silence before and after a source of ``own`` samples."""
    after = 0 if song.end is None else seconds_to_samples(song.end, sample_rate) - own
    return seconds_to_samples(lead_in(song), sample_rate), max(after, 0)


def _recording(song: Request, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    """The source as the autoencoder wants it, with silence for what is to grow around it."""
    samples = _read("source", song.source, autoencoder)
    return torch.nn.functional.pad(samples, _around(song, samples.shape[1], autoencoder.sample_rate))


def _references(song: Request, autoencoder: Autoencoder, frames: int, encode: Encode) -> Float[Tensor, "n r c"] | None:
    """Latents of every reference: its start, what begins at its third, and its end, as diffusers windows it.

    Differs from upstream, whose windows are drawn at random without a seed.
    """
    latents = []
    for path in song.references:
        samples = _read("references", path, autoencoder)
        if float(samples.abs().max()) < SILENT:
            raise ValueError(f"song.references={path}: is silent, so it has no timbre; leave it out")
        wanted = frames * autoencoder.hop
        samples = samples.repeat(1, -(-wanted // samples.shape[1]))
        window, total = frames // 3 * autoencoder.hop, samples.shape[1]
        last = wanted - 2 * window
        parts = [samples[:, :window], samples[:, total // 3 : total // 3 + window], samples[:, total - last :]]
        latents.append(encode(Audio(torch.cat(parts, dim=1), autoencoder.sample_rate)))
    return torch.stack(latents) if latents else None


def _read(key: str, path: str | None, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    with _named(key, path):
        audio = read_audio(Path(path or ""))
        if audio.samples.shape[1] == 0:
            raise ValueError("has no samples; name a recording")
        if not audio.samples.isfinite().all():
            raise ValueError("holds samples that are not finite numbers; write it anew")
        return fitted(audio, autoencoder)


@contextmanager
def _named(key: str, path: str | None) -> Iterator[None]:
    """Mistakes in the file at ``path`` are told of with the field that names it."""
    try:
        if not Path(path or "").is_file():
            raise ValueError("no such file; name an audio file")
        yield
    except (ValueError, OSError, soundfile.LibsndfileError) as error:
        reason = " ".join(str(error).replace(f"{path}: ", "").split())
        raise ValueError(f"song.{key}={shown(path)}: {shown(reason, 4 * SHOWN)}") from error
