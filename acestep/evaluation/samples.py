"""Generated songs of an evaluation, as files keyed by everything they depend on, so that evaluations can resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from acestep.adapters.read import find_adapter
from acestep.audio.audio import Audio, read_nonempty_audio
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.cache import map_songs
from acestep.evaluation.hashing import digest, digest_module, digest_tensor
from acestep.evaluation.prompts import EvaluationPrompt, song_seed
from acestep.evaluation.sweep import ADAPTERS, SweepPoint
from acestep.files import atomic
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Request, Song

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One song of a prompt at a sweep point. ``path`` holds the audio unless ``excluded`` gives a reason.

    The reason why a song could not be generated is kept in ``path`` with the suffix ``.txt``: the same request fails
    the same way, and is not tried again until that file is deleted.
    """

    prompt: EvaluationPrompt
    take: int
    point: SweepPoint
    key: str
    path: Path
    excluded: str = ""

    @property
    def reason_path(self) -> Path:
        return self.path.with_suffix(".txt")

    @property
    def is_done(self) -> bool:
        """Whether there is a song, or a reason why not."""
        return bool(self.excluded) or self.path.is_file() or self.reason_path.is_file()


OnSong = Callable[[Clip, Audio], None]
"""Callback for each generated clip, with the audio as its file holds it; called from several threads."""


class ClipStore:
    """Generates the clips that a folder does not hold yet.

    A clip's key hashes the networks' weights, the resolved song, and the sampler, but not its batch, which only changes
    the speed.
    """

    def __init__(self, folder: str | Path, pipeline: Pipeline, batch_size: int) -> None:
        self.folder = Path(folder)
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.fingerprint = pipeline_fingerprint(pipeline)
        self._adapters: dict[str, str] = {}

    def make(self, prompts: Sequence[EvaluationPrompt], point: SweepPoint, takes: int = 1) -> list[Clip]:
        """The clips of all prompts at ``point``, in order, ``takes`` songs from different noise for each."""
        clips = self.plan(prompts, point, takes)
        self.generate(clips)
        return self.with_reasons(clips)

    def plan(self, prompts: Sequence[EvaluationPrompt], point: SweepPoint, takes: int = 1) -> list[Clip]:
        """The same clips with their keys, before any is generated."""
        return [self._clip(prompt, take, point) for prompt in prompts for take in range(takes)]

    def generate(self, clips: Sequence[Clip], ranks: Ranks | None = None, on_song: OnSong | None = None) -> None:
        """Generate this rank's share of the missing clips of one sweep point."""
        valid = [clip for clip in clips if not clip.excluded]
        # Batches are cut from all songs and generated as a whole, so that neither an interruption nor the number of
        # ranks changes a song's rounding.
        batches = [valid[start : start + self.batch_size] for start in range(0, len(valid), self.batch_size)]
        for number, batch in (ranks or Ranks()).shard(list(enumerate(batches, 1))):
            if not all(clip.is_done for clip in batch):
                log.info("%s: batch %d of %d", batch[0].point.label, number, len(batches))
                self._generate(batch, on_song)

    def with_reasons(self, clips: Sequence[Clip]) -> list[Clip]:
        """The clips, with ``excluded`` set for those that could not be generated."""
        reasons = {clip.key: _reason(clip) for clip in clips}
        return [replace(clip, excluded=reasons[clip.key]) for clip in clips]

    def _clip(self, prompt: EvaluationPrompt, take: int, point: SweepPoint) -> Clip:
        song = replace(_request(prompt.song) if ADAPTERS in point.song else prompt.song, **point.song)
        seed = song.seed if take == 0 else song_seed(prompt.id, song.seed, take)
        prompt, reason = replace(prompt, song=replace(song, seed=seed)), ""
        try:
            prompt = replace(prompt, song=self.pipeline.resolve(prompt.song))
        except ValueError as error:
            reason = str(error)
        if point.sampler is None and prompt.recording is None:
            reason = "no recording"
        key = digest(
            self.fingerprint,
            self._request_json(prompt.song),
            repr(point.sampler),
            _recording_bytes(prompt, point.sampler),
        )
        return Clip(prompt, take, point, key, self.folder / f"{key[:32]}.flac", reason)

    def _request_json(self, song: Song) -> str:
        """The request as JSON; adapters by a hash of their files."""
        request = asdict(song)
        if isinstance(song, Request) and song.adapters is not None:
            request[ADAPTERS] = [(self._adapter_hash(use.path), use.scale) for use in song.adapters]
        return json.dumps(request, sort_keys=True)

    def _adapter_hash(self, path: str) -> str:
        if path not in self._adapters:
            self._adapters[path] = digest(find_adapter(Path(path)).read_bytes())
        return self._adapters[path]

    def _generate(self, clips: Sequence[Clip], on_song: OnSong | None) -> None:
        """Write a batch of clips, and the reasons for those that the pipeline refuses."""
        try:
            sampler = clips[0].point.sampler
            if sampler is None:
                on_cpu = next(self.pipeline.network.parameters()).device.type == "cpu"
                map_songs(lambda clip: _save(clip, self._reconstruction(clip), on_song), clips, threaded=on_cpu)
                return
            songs = self.pipeline.generate([clip.prompt.song for clip in clips], sampler, batch_size=len(clips))
            pairs = zip(clips, songs, strict=True)
            # One song for each core: a whole batch in memory could be gigabytes.
            while group := list(islice(pairs, torch.get_num_threads())):
                map_songs(lambda pair: _save(pair[0], pair[1], on_song), group)
        except ValueError as error:
            if len(clips) > 1:
                # One invalid song must not exclude the rest of its batch.
                for clip in clips:
                    self._generate([clip], on_song)
                return
            log.warning("%s, %s: %s", clips[0].point.label, clips[0].prompt.id, error)
            with atomic(clips[0].reason_path) as aside:
                aside.write_text(str(error), encoding="utf-8")

    def _reconstruction(self, clip: Clip) -> Audio:
        """The recording, cut to the song's length, through the autoencoder."""
        posterior = self.pipeline.encode(recording_excerpt(clip))
        decoded = self.pipeline.decode(posterior.mean)[0].cpu()
        return Audio(decoded, self.pipeline.autoencoder.sample_rate, clip.prompt.song)


def recording_excerpt(clip: Clip) -> Audio:
    """The prompt's recording, cut to the song's length."""
    assert clip.prompt.recording is not None
    assert clip.prompt.song.seconds is not None
    recording = read_nonempty_audio(clip.prompt.recording)
    return replace(recording, samples=recording.samples[:, : round(clip.prompt.song.seconds * recording.sample_rate)])


def _save(clip: Clip, audio: Audio, on_song: OnSong | None) -> None:
    audio.save(clip.path)
    if on_song:
        on_song(clip, audio.to_24bit())


def pipeline_fingerprint(pipeline: Pipeline) -> str:
    """SHA-256 over everything but the request that songs depend on: weights, silence, options, device type."""
    parts = (pipeline.network, pipeline.autoencoder, pipeline.conditioner.text_encoder)
    modules = [digest_module(part) for part in parts if isinstance(part, nn.Module)]
    device = next(pipeline.network.parameters()).device.type
    device += ", compiled" if pipeline.compiled else ""
    return digest(*modules, digest_tensor(pipeline.conditioner.silence), repr(pipeline.network.config), device)


def _request(song: Song) -> Request:
    """``song`` with the fields of a request, such as adapters."""
    return Request(**{field.name: getattr(song, field.name) for field in fields(song)})


def _reason(clip: Clip) -> str:
    if clip.excluded or clip.path.is_file():
        return clip.excluded
    if clip.reason_path.is_file():
        return clip.reason_path.read_text(encoding="utf-8")
    return "was not generated"


def _recording_bytes(prompt: EvaluationPrompt, sampler: Sampler | None) -> bytes:
    return prompt.recording.read_bytes() if sampler is None and prompt.recording else b""
