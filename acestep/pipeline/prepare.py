"""Requests to inputs of the networks and the sampler: recordings to latents, tasks to contexts, and splicing after it.

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
from acestep.conditioning.masks import TaskContext, repaint_span, task_context, tile_silence
from acestep.conditioning.prompt import TEXT2MUSIC, task_instruction
from acestep.data.encode import convert_audio
from acestep.flow.noise import Retake, song_generators
from acestep.flow.tasks import CoverStart, CoverSwitch, Repaint, SamplerTask
from acestep.planner.codes import planned_context
from acestep.songs import Request, Song
from acestep.songs.checks import lead_in
from acestep.songs.song import MESSAGE_CHARACTERS, shorten
from acestep.types import Autoencoder, Conditions
from acestep.units import frames_to_seconds, seconds_to_frames, seconds_to_samples
from acestep.weights.checkpoint import Lengths

SILENT = 1e-6
"""Largest absolute sample of digital silence (upstream)."""
CROSSFADE_FRAMES = 25
SPLICE_SECONDS = 0.05
"""Both at ``repaint_strength`` 0; they decrease linearly to 0 at 1, as does the share of steps with injection."""

Encode = Callable[[Audio], Float[Tensor, "t c"]]
DecodeCodes = Callable[[Sequence[int]], Float[Tensor, "t c"]]


@dataclass(frozen=True)
class PreparedSong:
    """A song with the inputs of the networks and the sampler.

    Attributes:
        song: resolved.
        frames: its length.
        context: conditioning of the task.
        plain_context: without the source, for the steps after ``cover_strength``; ``None`` if there are none.
        clean: latents of the source; ``None`` without a source.
        span: repainted frames, first and end; ``None`` without a span.
        recording: the source at the autoencoder's sample rate; ``None`` unless its samples are spliced in.
    """

    song: Song
    frames: int
    context: TaskContext
    plain_context: TaskContext | None = None
    clean: Float[Tensor, "t c"] | None = None
    span: tuple[int, int] | None = None
    recording: Float[Tensor, "a s"] | None = None


def source_seconds(song: Request, lengths: Lengths, sample_rate: int, hop: int) -> float:
    """Duration of a song with a source, extended by its span. Reads only the header of the recording."""
    with _field_in_errors("source", song.source):
        info = soundfile.info(song.source)
        if info.frames < 1:
            raise ValueError("has no samples; name a recording")
    samples = math.ceil(info.frames * sample_rate / info.samplerate)
    start = song.start or 0.0
    if start > samples / sample_rate:
        raise ValueError(f"song.start={start:g}: the source is {samples / sample_rate:.2f} s long; begin inside it")
    frames = (samples + sum(_silence_around(song, samples, sample_rate))) // hop
    key = "source" if song.end is None else "end"
    key = "start" if song.start is not None and song.start < 0 else key
    seconds = lengths.check(frames_to_seconds(frames, sample_rate, hop), f"{key}={getattr(song, key)}")
    if song.seconds is not None and seconds_to_frames(song.seconds, sample_rate, hop) != frames:
        raise ValueError(
            f"song.seconds={song.seconds:g}: task {song.task} lasts as long as its source, {seconds:g} s; leave it out"
        )
    return seconds


def prepare_song(
    song: Song,
    frames: int,
    autoencoder: Autoencoder,
    silence: Tensor,
    reference_frames: int,
    encode: Encode,
    decode_codes: DecodeCodes,
) -> PreparedSong:
    """Read the audio files of ``song`` and build its contexts.

    Args:
        song: resolved.
        frames: its length.
        autoencoder: defines sample rate and hop.
        silence: latents of digital silence, ``(1, t, c)``.
        reference_frames: latent frames of a timbre reference.
        encode: mean latents of audio.
        decode_codes: latents of 5 Hz codes.
    """
    plain = task_context("text2music", None, silence, frames)
    if not isinstance(song, Request):
        return PreparedSong(song, frames, plain)
    references = _reference_latents(song, autoencoder, reference_frames, encode)
    plain = replace(plain, references=references)
    if song.codes:
        planned = replace(planned_context(decode_codes(song.codes), silence, frames), references=references)
        return PreparedSong(song, frames, planned, plain if song.cover_strength < 1 else None)
    if song.source is None:
        return PreparedSong(song, frames, plain)
    samples = _padded_source(song, autoencoder)
    if float(samples.abs().max()) < SILENT:
        clean = tile_silence(silence, frames)[0]
    else:
        clean = encode(Audio(samples, autoencoder.sample_rate)).to(silence)
    if len(clean) != frames:
        raise ValueError(
            f"song.source={song.source}: has fewer samples than its header states; the file is damaged, replace it"
        )
    if song.task == "edit":
        # As upstream: with the source as context, the edit would change little.
        return PreparedSong(song, frames, plain, clean=clean)
    has_span = song.start is not None or song.end is not None
    span = repaint_span(song.start, song.end, frames, autoencoder.sample_rate, autoencoder.hop) if has_span else None
    context = replace(
        task_context(song.task, clean, silence, frames, span),
        instruction=task_instruction(song.task, song.tracks),
        references=references,
    )
    plain = replace(context, source=tile_silence(silence, frames)[0], is_cover=False, instruction=TEXT2MUSIC)
    recording = samples if span and song.splice == "source" else None
    return PreparedSong(song, frames, context, plain if song.cover_strength < 1 else None, clean, span, recording)


def batch_songs(songs: Sequence[Song], size: int) -> Iterator[list[Song]]:
    """Batches of up to ``size`` consecutive songs that have the same sampler parameters."""
    for _, run in groupby(songs, _sampler_parameters):
        group = list(run)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def sampler_task(
    batch: Sequence[PreparedSong],
    frames: int,
    conditions: Conditions | None,
    null: Conditions | None,
    device: torch.device,
) -> SamplerTask:
    """The task of ``batch`` for the sampler; ``conditions`` and ``null`` are those after ``cover_strength``."""
    first = batch[0].song
    if not isinstance(first, Request):
        return SamplerTask()
    switch = CoverSwitch(conditions=conditions, null=null, strength=first.cover_strength) if conditions else None
    if batch[0].clean is None:
        return SamplerTask(switch=switch)
    clean, repaint = source_latents(batch, device), None
    if batch[0].span:
        position = torch.arange(frames)
        masks = [(position >= item.span[0]) & (position < item.span[1]) for item in batch if item.span]
        repaint = Repaint(
            mask=torch.stack(masks).to(device),
            clean=clean,
            injection_ratio=1 - first.repaint_strength,
            crossfade_frames=_crossfade_frames(first),
        )
    return SamplerTask(
        start=CoverStart(source=clean, strength=first.source_strength) if first.source_strength > 0 else None,
        switch=switch,
        repaint=repaint,
    )


def source_latents(batch: Sequence[PreparedSong], device: torch.device) -> Float[Tensor, "b t c"]:
    """Latents of the sources, padded to the longest."""
    clean = [item.clean for item in batch if item.clean is not None]
    return torch.nn.utils.rnn.pad_sequence(clean, batch_first=True).to(device)


def add_retakes(noise: Float[Tensor, "b t c"], batch: Sequence[PreparedSong]) -> Float[Tensor, "b t c"]:
    """``noise``, mixed with that of ``retake_seed`` for songs with ``retake``."""
    rows = list(noise)
    for row, item in enumerate(batch):
        song = item.song
        if isinstance(song, Request) and song.retake > 0:
            (generator,) = song_generators([song.retake_seed])
            other = torch.randn(item.frames, noise.shape[-1], generator=generator).to(noise)
            rows[row] = rows[row].clone()
            rows[row][: item.frames] = Retake(variance=song.retake)(rows[row][None, : item.frames], other[None])[0]
    return torch.stack(rows)


def song_label(song: Song) -> str:
    """The name of ``song`` in messages, or else its seed."""
    return song.name if isinstance(song, Request) and song.name else f"song.seed={song.seed}"


def keeps_source(song: Song) -> bool:
    """Whether the result keeps a part of the source, and so the source's level."""
    return isinstance(song, Request) and (song.start is not None or song.end is not None) and song.splice != "none"


def splice_source(
    generated: Float[Tensor, "a s"], item: PreparedSong, autoencoder: Autoencoder, decode: Callable[[Tensor], Tensor]
) -> Float[Tensor, "a s"]:
    """``generated`` with the source outside the span, cross-faded; ``decode`` decodes a batch of latents."""
    song = item.song
    if item.span is None or item.clean is None or not isinstance(song, Request) or not keeps_source(song):
        return generated
    fade = int(SPLICE_SECONDS * (1 - song.repaint_strength) * autoencoder.sample_rate)
    margin = _crossfade_frames(song) * autoencoder.hop
    first, end = (edge * autoencoder.hop for edge in item.span)
    # Only the generated span is attenuated if it clips: the rest of the song keeps its level.
    audible = generated[:, max(first - margin - fade, 0) : end + margin + fade]
    generated = generated / audible.abs().max().clamp_min(1)
    if item.recording is not None:
        return crossfade(generated, item.recording.to(generated)[:, : generated.shape[1]], first, end, fade)
    # The sampler already crossfades in the latents; beyond that, samples equal those of the decoded source.
    kept = decode(item.clean[None])[0].to(generated)
    first, end = max(first - margin, 0), min(end + margin, generated.shape[1])
    return crossfade(
        generated, kept, first + fade if first else 0, end - fade if end < generated.shape[1] else end, fade
    )


def crossfade(
    inside: Float[Tensor, "a s"], outside: Float[Tensor, "a s"], first: int, end: int, fade: int
) -> Float[Tensor, "a s"]:
    """``inside`` from sample ``first`` up to ``end``, ``outside`` elsewhere; ramps of ``fade`` samples lie outside."""
    weight = torch.zeros(inside.shape[1])
    weight[first:end] = 1
    before, after = min(fade, first), min(fade, inside.shape[1] - end)
    weight[first - before : first] = torch.linspace(0, 1, before + 2)[1:-1]
    weight[end : end + after] = torch.linspace(1, 0, after + 2)[1:-1]
    return weight * inside + (1 - weight) * outside


def _sampler_parameters(song: Song) -> Hashable:
    """Parameters of the sampler that all songs of a batch share."""
    if not isinstance(song, Request):
        return None
    span = (song.seconds, song.repaint_strength) if song.start is not None or song.end is not None else None
    edit = (song.edit_start, song.edit_stop, song.edit_draws) if song.task == "edit" else None
    return bool(song.source), bool(song.codes), song.cover_strength, song.source_strength, span, edit, song.adapters


def _crossfade_frames(song: Request) -> int:
    return round(CROSSFADE_FRAMES * (1 - song.repaint_strength))


def _silence_around(song: Request, samples: int, sample_rate: int) -> tuple[int, int]:
    """Samples of silence to add before and after a source of ``samples`` samples."""
    after = 0 if song.end is None else seconds_to_samples(song.end, sample_rate) - samples
    return seconds_to_samples(lead_in(song), sample_rate), max(after, 0)


def _padded_source(song: Request, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    """The source at the autoencoder's rate and channels, with silence where the song extends beyond it."""
    samples = _read_recording("source", song.source, autoencoder)
    return torch.nn.functional.pad(samples, _silence_around(song, samples.shape[1], autoencoder.sample_rate))


def _reference_latents(
    song: Request, autoencoder: Autoencoder, frames: int, encode: Encode
) -> Float[Tensor, "n r c"] | None:
    """Latents of every reference: windows at its start, from one third on, and at its end, as in diffusers.

    Upstream draws the windows at random without a seed.
    """
    latents = []
    for path in song.references:
        samples = _read_recording("references", path, autoencoder)
        if float(samples.abs().max()) < SILENT:
            raise ValueError(f"song.references={path}: is silent, so it has no timbre; leave it out")
        length = frames * autoencoder.hop
        samples = samples.repeat(1, -(-length // samples.shape[1]))
        window, total = frames // 3 * autoencoder.hop, samples.shape[1]
        last = length - 2 * window
        parts = [samples[:, :window], samples[:, total // 3 : total // 3 + window], samples[:, total - last :]]
        latents.append(encode(Audio(torch.cat(parts, dim=1), autoencoder.sample_rate)))
    return torch.stack(latents) if latents else None


def _read_recording(key: str, path: str | None, autoencoder: Autoencoder) -> Float[Tensor, "a s"]:
    with _field_in_errors(key, path):
        audio = read_audio(Path(path or ""))
        if audio.samples.shape[1] == 0:
            raise ValueError("has no samples; name a recording")
        if not audio.samples.isfinite().all():
            raise ValueError("has samples that are not finite; write it again")
        return convert_audio(audio, autoencoder)


@contextmanager
def _field_in_errors(key: str, path: str | None) -> Iterator[None]:
    """Errors about the file at ``path`` name the song's field ``key`` too."""
    try:
        if not Path(path or "").is_file():
            raise ValueError("no such file; name an audio file")
        yield
    except (ValueError, OSError, soundfile.LibsndfileError) as error:
        reason = " ".join(str(error).replace(f"{path}: ", "").split())
        raise ValueError(f"song.{key}={shorten(path)}: {shorten(reason, 4 * MESSAGE_CHARACTERS)}") from error
