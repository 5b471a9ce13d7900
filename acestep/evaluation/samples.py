"""Every song of an evaluation as a file named by all that decides it, so that a stopped evaluation goes on."""

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
from acestep.audio.audio import Audio, read_sound
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.cache import each_song
from acestep.evaluation.files import digest, digest_module, digest_tensor
from acestep.evaluation.prompts import Prompt, seed_of
from acestep.evaluation.sweep import ADAPTERS, Cell
from acestep.files import atomic
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.types import Request, Song

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One prompt in one cell. ``path`` holds the audio unless ``excluded`` says why there is none.

    Why a song could not be made is kept in ``path`` with the suffix ``.txt``: the same request fails the same way, and
    is not tried again until that file is deleted.
    """

    prompt: Prompt
    take: int
    cell: Cell
    key: str
    path: Path
    excluded: str = ""

    @property
    def reason_path(self) -> Path:
        """Where it is kept why there is no audio."""
        return self.path.with_suffix(".txt")

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self.excluded) or self.path.is_file() or self.reason_path.is_file()


Listen = Callable[[Clip, Audio], None]
"""Told of each clip that was made, with what a reader of its file gets; by several threads at once."""


class ClipStore:
    """Makes the clips that a folder does not hold yet.

    A clip's key hashes the networks' weights, the song as resolved, and the sampler. The batch it is made in is not in
    the key: it changes the speed, not the music.
    """

    def __init__(self, folder: str | Path, pipeline: Pipeline, batch_size: int) -> None:
        self.folder = Path(folder)
        self.pipeline = pipeline
        self.batch_size = batch_size
        self.fingerprint = fingerprint(pipeline)
        self._adapters: dict[str, str] = {}

    def make(self, prompts: Sequence[Prompt], cell: Cell, takes: int = 1) -> list[Clip]:
        """The clips of all prompts under ``cell``, in order, ``takes`` songs from different noise for each."""
        clips = self.planned(prompts, cell, takes)
        self.fill(clips)
        return self.settled(clips)

    def planned(self, prompts: Sequence[Prompt], cell: Cell, takes: int = 1) -> list[Clip]:
        """The same clips, each by its key, before any is made."""
        return [self._clip(prompt, take, cell) for prompt in prompts for take in range(takes)]

    def fill(self, clips: Sequence[Clip], ranks: Ranks | None = None, listen: Listen | None = None) -> None:
        """Make this rank's share of what is missing of one cell's clips, and let ``listen`` hear what was made."""
        asked = [clip for clip in clips if not clip.excluded]
        # Batches are cut from all songs and made whole, so that neither a stop nor the number of ranks changes how a
        # song is rounded.
        batches = [asked[start : start + self.batch_size] for start in range(0, len(asked), self.batch_size)]
        for number, batch in (ranks or Ranks()).share(list(enumerate(batches, 1))):
            if not all(clip.is_settled for clip in batch):
                log.info("%s: batch %d of %d", batch[0].cell.label, number, len(batches))
                self._generate(batch, listen)

    def settled(self, clips: Sequence[Clip]) -> list[Clip]:
        """The clips with the reasons of those that could not be made."""
        reasons = {clip.key: _reason(clip) for clip in clips}
        return [replace(clip, excluded=reasons[clip.key]) for clip in clips]

    def _clip(self, prompt: Prompt, take: int, cell: Cell) -> Clip:
        song = replace(_request(prompt.song) if ADAPTERS in cell.song else prompt.song, **cell.song)
        seed = song.seed if take == 0 else seed_of(prompt.id, song.seed, take)
        prompt, reason = replace(prompt, song=replace(song, seed=seed)), ""
        try:
            prompt = replace(prompt, song=self.pipeline.resolve(prompt.song))
        except ValueError as error:
            reason = str(error)
        if cell.sampler is None and prompt.recording is None:
            reason = "no recording"
        key = digest(
            self.fingerprint, self._words(prompt.song), repr(cell.sampler), _recording_bytes(prompt, cell.sampler)
        )
        return Clip(prompt, take, cell, key, self.folder / f"{key[:32]}.flac", reason)

    def _words(self, song: Song) -> str:
        """All that is asked for; adapters by what is in their files."""
        asked = asdict(song)
        if isinstance(song, Request) and song.adapters is not None:
            asked[ADAPTERS] = [(self._adapter(use.path), use.scale) for use in song.adapters]
        return json.dumps(asked, sort_keys=True)

    def _adapter(self, path: str) -> str:
        if path not in self._adapters:
            self._adapters[path] = digest(find_adapter(Path(path)).read_bytes())
        return self._adapters[path]

    def _generate(self, clips: Sequence[Clip], listen: Listen | None) -> None:
        """Write the clips, and why there is none for those that the pipeline refused."""
        try:
            sampler = clips[0].cell.sampler
            if sampler is None:
                on_cpu = next(self.pipeline.network.parameters()).device.type == "cpu"
                each_song(lambda clip: _keep(clip, self._reconstruction(clip), listen), clips, at_once=on_cpu)
                return
            songs = self.pipeline.generate([clip.prompt.song for clip in clips], sampler, batch_size=len(clips))
            made = zip(clips, songs, strict=True)
            # One song for each core: a whole batch in memory could be gigabytes.
            while group := list(islice(made, torch.get_num_threads())):
                each_song(lambda pair: _keep(*pair, listen), group)
        except ValueError as error:
            if len(clips) > 1:
                # One bad song must not take the rest of its batch with it.
                for clip in clips:
                    self._generate([clip], listen)
                return
            log.warning("%s, %s: %s", clips[0].cell.label, clips[0].prompt.id, error)
            with atomic(clips[0].reason_path) as aside:
                aside.write_text(str(error), encoding="utf-8")

    def _reconstruction(self, clip: Clip) -> Audio:
        """As much of the recording as the song is long, through the autoencoder."""
        posterior = self.pipeline.encode(begun(clip))
        decoded = self.pipeline.decode(posterior.mean)[0].cpu()
        return Audio(decoded, self.pipeline.autoencoder.sample_rate, clip.prompt.song)


def begun(clip: Clip) -> Audio:
    """As much of the prompt's recording as its song is long."""
    assert clip.prompt.recording is not None
    recording = read_sound(clip.prompt.recording)
    return replace(recording, samples=recording.samples[:, : round(clip.prompt.song.seconds * recording.sample_rate)])


def _keep(clip: Clip, audio: Audio, listen: Listen | None) -> None:
    audio.save(clip.path)
    if listen:
        listen(clip, audio.as_stored())


def fingerprint(pipeline: Pipeline) -> str:
    """SHA-256 over all that decides the pipeline's songs beside the request: weights, silence, options, device kind."""
    parts = (pipeline.network, pipeline.autoencoder, pipeline.conditioner.text_encoder)
    modules = [digest_module(part) for part in parts if isinstance(part, nn.Module)]
    device = next(pipeline.network.parameters()).device.type
    device += ", compiled" if pipeline.compiled else ""
    return digest(*modules, digest_tensor(pipeline.conditioner.silence), repr(pipeline.network.config), device)


def _request(song: Song) -> Request:
    """``song`` as one that may carry adapters."""
    return Request(**{field.name: getattr(song, field.name) for field in fields(song)})


def _reason(clip: Clip) -> str:
    if clip.excluded or clip.path.is_file():
        return clip.excluded
    if clip.reason_path.is_file():
        return clip.reason_path.read_text(encoding="utf-8")
    return "was not made"


def _recording_bytes(prompt: Prompt, sampler: Sampler | None) -> bytes:
    return prompt.recording.read_bytes() if sampler is None and prompt.recording else b""
