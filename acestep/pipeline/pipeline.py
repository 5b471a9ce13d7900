"""Songs in words to songs as audio, and audio to latents: every waveform the project makes comes from here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.adapters import adapter_base, is_adapter, load_adapter
from acestep.adapters.bank import Bank
from acestep.audio.audio import Audio
from acestep.audio.loudness import Normalize, levelled
from acestep.audio.tiling import tiled_decode
from acestep.conditioning.encode import Conditioner
from acestep.data.encode import TiledEncoder
from acestep.flow.sampler import OnStep, Sampler
from acestep.memory import Memory, Placement, quantise
from acestep.models.acestep import AceStep
from acestep.models.dit import Padding
from acestep.pipeline import build
from acestep.pipeline.build import (
    build_autoencoder,
    build_conditioner,
    build_network,
    build_sampler,
    choice,
    named_dtype,
)
from acestep.pipeline.prepare import Prepared, batches, called, keeps_source, prepare, source_seconds, spliced
from acestep.pipeline.sample import BatchSampler
from acestep.planner.codes import CODES_PER_SECOND
from acestep.planner.hints import check_codes, hints
from acestep.songs.checks import TASKS, checked_request
from acestep.types import AdapterUse, Autoencoder, Posterior, Request, Song
from acestep.units import frames_to_seconds, seconds_to_frames
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.open import find_folder, open_checkpoint
from acestep.weights.save import save_checkpoint

DECODE_CHUNK, DECODE_OVERLAP = 2048, 64
"""Latent frames. Upstream's overlap (``vae_decode.py``); its chunk of 512 would be a quarter overlap for no memory."""

OnLatents = Callable[[Song, Float[Tensor, "t c"]], None]
"""Told of each song's latents before they are decoded."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """The parts of a model, built, as one instrument.

    Example:
        >>> from acestep.flow import Euler, Linear, NoGuidance, Sampler
        >>> pipe = Pipeline.from_pretrained("micro")
        >>> song = Song(caption="a song with flute, bright major", seconds=pipe.lengths.min_seconds, seed=7)
        >>> for audio in pipe.generate([song], Sampler(Linear(steps=2), Euler(), NoGuidance())):
        ...     print(audio.samples.shape[0], "channels at", audio.sample_rate, "Hz")
        2 channels at 48000 Hz

    Args:
        network: DiT, condition encoder and tokenizer.
        autoencoder: waveform to latents and back.
        conditioner: songs to condition inputs.
        lengths: seconds of music that the checkpoint makes.
        sampler: used where ``generate`` gets none.
        checkpoint: what the parts were built from.
        placement: where parts work, and whether they wait elsewhere.
        decode_chunk: latent frames that are decoded at a time, which bounds the memory; ``None`` decodes songs whole.
        allow_untrained: whether tasks may be asked for that the checkpoint was not trained for.
        merged: adapters that are part of the network's weights.
        compiled: whether torch compiles the DiT's layers: a wait once; the same music but for rounding.
    """

    network: AceStep
    autoencoder: Autoencoder
    conditioner: Conditioner
    lengths: Lengths
    sampler: Sampler
    checkpoint: Checkpoint
    placement: Placement = field(default_factory=Placement)
    decode_chunk: int | None = None
    allow_untrained: bool = False
    merged: tuple[AdapterUse, ...] = ()
    compiled: bool = False
    bank: Bank = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """The adapters that songs ask for are kept with the network."""
        object.__setattr__(self, "bank", Bank(self.network.decoder, self.merged))

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        padding: Padding | str | None = None,
        memory: Memory | str = Memory.full,
        allow_untrained: bool = False,
        merged: Sequence[AdapterUse] = (),
    ) -> Pipeline:
        """The checkpoint in a folder (any known layout, or a run folder), or a shipped one by its name.

        A folder that holds an adapter is loaded on top of the weights that it was trained on. ``memory`` is any but
        ``auto``; ``acestep.memory.choose`` picks one. ``merged`` become part of the weights before these are quantised.
        """
        folder, memory = find_folder(path_or_name), choice("memory", Memory, memory)
        if not is_adapter(folder):
            checkpoint = open_checkpoint(path_or_name)
            return cls.from_checkpoint(checkpoint, device, dtype, padding, memory, allow_untrained, merged)
        pipeline = cls.from_pretrained(adapter_base(folder), device, dtype, padding, memory, allow_untrained, merged)
        load_adapter(pipeline.network.decoder, folder)
        pipeline.network.decoder.to("cpu" if memory.offloads else device)
        pipeline.network.eval()
        return pipeline

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        padding: Padding | str | None = None,
        memory: Memory = Memory.full,
        allow_untrained: bool = False,
        merged: Sequence[AdapterUse] = (),
    ) -> Pipeline:
        """The parts of ``checkpoint``, built on ``device``, or beside it where ``memory`` offloads."""
        dtype, home = named_dtype(dtype), torch.device("cpu") if memory.offloads else torch.device(device)
        network = build_network(checkpoint, "cpu" if memory.quantised else home, dtype, padding)
        if merged:
            Bank(network.decoder).merge(merged)
        if memory.quantised:
            quantise(network, memory.quantised)
            network.to(home)
        network.null_condition_emb.data = network.null_condition_emb.to(device)
        return cls(
            network=network,
            autoencoder=build_autoencoder(checkpoint, home, dtype),
            conditioner=build_conditioner(checkpoint, network.config, home, dtype),
            lengths=checkpoint.lengths,
            sampler=build_sampler(checkpoint),
            checkpoint=checkpoint,
            placement=Placement(torch.device(device), memory.offloads),
            decode_chunk=DECODE_CHUNK,
            allow_untrained=allow_untrained,
            merged=tuple(merged),
        )

    def with_autoencoder(self, path_or_name: str | Path) -> Pipeline:
        """The same with the autoencoder of another checkpoint, for instance one with a fine-tuned decoder."""
        autoencoder, checkpoint = build.swap_autoencoder(self.autoencoder, self.checkpoint, path_or_name)
        return replace(self, autoencoder=autoencoder, checkpoint=checkpoint)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write all parts, with the network's present weights, to ``folder`` in the native layout."""
        config = {**self.checkpoint.network_config, **self.network.config.to_dict()}
        checkpoint = replace(self.checkpoint, network_config=config, network=self.network.state_dict())
        return save_checkpoint(checkpoint, folder, "native", dtype)

    def generate(
        self,
        songs: Sequence[Song],
        sampler: Sampler | None = None,
        batch_size: int = 1,
        normalize: Normalize | str = Normalize.peak,
        on_step: OnStep | None = None,
        on_latents: OnLatents | None = None,
    ) -> Iterator[Audio]:
        """Audio of each song, in order, as batches finish.

        A song's noise is drawn on the CPU from its own seed, and with ``padding=masked`` it does not hear what it is
        batched with: ``batch_size`` changes the speed, not the music.

        Args:
            songs: what to make; a ``Request`` may start from recordings and carry adapters.
            sampler: how; ``None`` is the checkpoint's own.
            batch_size: songs at a time, at most: only those of one task and strength share a batch.
            normalize: at what level; a song that keeps a part of its source keeps its source's.
            on_step: told of each sampler step before it is taken, for previews (``path.clean_estimate``).
            on_latents: told of each song's latents before they are decoded.

        Raises:
            ValueError: at once, if any song asks for what the checkpoint cannot make.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: need at least 1 song at a time")
        resolved = [self.resolve(song) for song in songs]
        level = choice("normalize", Normalize, normalize)
        return self._generate(batches(resolved, batch_size), sampler or self.sampler, level, on_step, on_latents)

    def resolve(self, song: Song) -> Song:
        """``song`` as it will be made: metadata in the trained form, ``seconds`` a whole number of latent frames."""
        song = checked_request(song)
        self.conditioner.check(song)
        if isinstance(song, Request):
            self._check_trained(song)
            if song.source is not None:
                seconds = source_seconds(song, self.lengths, self.autoencoder.sample_rate, self.autoencoder.hop)
                return replace(song, seconds=seconds)
            if song.codes:
                song = replace(song, seconds=self._coded_seconds(song))
        seconds = self.lengths.default_seconds if song.seconds is None else song.seconds
        return replace(song, seconds=self._seconds(self._frames(self.lengths.check(seconds))))

    @torch.no_grad()
    def latents(
        self, songs: Sequence[Song], sampler: Sampler | None = None, on_step: OnStep | None = None
    ) -> list[Float[Tensor, "t c"]]:
        """Latents of resolved ``songs``, made as one batch, each at its own length."""
        return self._sampled(self._prepared(songs), sampler or self.sampler, on_step)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveforms of latents, in float32."""
        with self.placement(self.autoencoder):
            latents = latents.to(self._autoencoder_weight())
            if self.decode_chunk is None:
                return self.autoencoder.decode(latents).float()
            return tiled_decode(self.autoencoder, latents, self.decode_chunk, DECODE_OVERLAP).float()

    @torch.no_grad()
    def encode(self, audio: Audio) -> Posterior:
        """The autoencoder's belief about ``audio`` of any rate and channel count, as a batch of one."""
        with self.placement(self.autoencoder):
            weight = self._autoencoder_weight()
            return TiledEncoder()(replace(audio, samples=audio.samples.to(weight)), self.autoencoder)

    def _generate(
        self,
        groups: Iterator[list[Song]],
        sampler: Sampler,
        normalize: Normalize,
        on_step: OnStep | None,
        on_latents: OnLatents | None,
    ) -> Iterator[Audio]:
        for songs in groups:
            for song in songs:
                for remark in self.conditioner.remarks(song):
                    logger.warning("%s: %s", called(song), remark)
            batch = self._prepared(songs)
            for item, latents in zip(batch, self._sampled(batch, sampler, on_step), strict=True):
                name, rate = called(item.song), self.autoencoder.sample_rate
                if not latents.isfinite().all():
                    raise ValueError(f"{name}: the sampler left the finite numbers; use dtype=float32")
                if on_latents:
                    on_latents(item.song, latents)
                samples = spliced(self.decode(latents[None])[0].cpu(), item, self.autoencoder, self.decode)
                level = Normalize.none if keeps_source(item.song) else normalize
                yield Audio(levelled(samples, level, rate, name), rate, item.song)

    def _prepared(self, songs: Sequence[Song]) -> list[Prepared]:
        return [
            prepare(
                song,
                self._frames(song.seconds),
                self.autoencoder,
                self.conditioner.silence,
                self.conditioner.reference_frames,
                lambda audio: self.encode(audio).mean[0].float(),
                self._hint,
            )
            for song in songs
        ]

    def _hint(self, codes: Sequence[int]) -> Float[Tensor, "t c"]:
        with self.placement(self.network.tokenizer, self.network.detokenizer):
            return hints(self.network, [codes])[0]

    def _sampled(
        self, batch: Sequence[Prepared], sampler: Sampler, on_step: OnStep | None
    ) -> list[Float[Tensor, "t c"]]:
        # Training moves the network by itself: where it stays, it says where the work is.
        device = self.placement.device if self.placement.offload else self.network.null_condition_emb.device
        parts = self.network, self.conditioner, self.bank, self.placement
        return BatchSampler(*parts, device, self.compiled)(batch, sampler, on_step)

    def _coded_seconds(self, song: Request) -> float:
        """How long a song of given codes lasts."""
        check_codes(self.network, song.codes)
        if song.seconds is not None:
            return song.seconds
        return self.lengths.check(len(song.codes) / CODES_PER_SECOND, "codes")

    def _check_trained(self, song: Request) -> None:
        is_base = "base" in str(self.checkpoint.network_config.get("model_version", ""))
        if not (TASKS[song.task].trained or is_base or self.allow_untrained):
            raise ValueError(
                f"song.task={song.task}: {self.checkpoint.name} was not trained for it; use a base checkpoint, "
                "or add allow_untrained=true"
            )

    def _seconds(self, frames: int) -> float:
        return frames_to_seconds(frames, self.autoencoder.sample_rate, self.autoencoder.hop)

    def _frames(self, seconds: float) -> int:
        return seconds_to_frames(seconds, self.autoencoder.sample_rate, self.autoencoder.hop)

    def _autoencoder_weight(self) -> Tensor:
        tensors = [*self.autoencoder.parameters(), *self.autoencoder.buffers()]
        return next(tensor for tensor in tensors if tensor.is_floating_point())
