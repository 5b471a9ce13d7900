"""Songs to audio, and audio to latents: the only place where waveforms are generated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.adapters import load_adapter
from acestep.adapters.adapter_set import AdapterSet
from acestep.audio.audio import Audio
from acestep.audio.loudness import Normalize, normalize_level
from acestep.audio.tiling import tiled_decode
from acestep.conditioning.encode import Conditioner
from acestep.data.encode import TiledEncoder
from acestep.flow.sampler import OnStep, Sampler
from acestep.memory import MemoryMode, Placement, quantize_network
from acestep.models.acestep import AceStep
from acestep.models.dit import Padding
from acestep.pipeline.build import (
    OpenedWeights,
    build_autoencoder,
    build_conditioner,
    build_network,
    build_sampler,
    named_dtype,
    open_weights,
    parse_enum,
    swap_autoencoder,
    weight_of,
)
from acestep.pipeline.prepare import (
    PreparedSong,
    batch_songs,
    keeps_source,
    prepare_song,
    song_label,
    source_seconds,
    splice_source,
)
from acestep.pipeline.sample import LatentSampler
from acestep.planner.codes import CODES_PER_SECOND, check_codes, codes_to_latents
from acestep.songs import AdapterUse, Request, Song
from acestep.songs.checks import TASKS, validate_request
from acestep.songs.song import AnySong
from acestep.types import Autoencoder, Posterior
from acestep.units import frames_to_seconds, seconds_to_frames
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.save import save_checkpoint

DECODE_CHUNK, DECODE_OVERLAP = 2048, 64
"""Latent frames. The overlap is upstream's (``vae_decode.py``); with its chunk of 512, a quarter would be overlap."""

OnLatents = Callable[[Song, Float[Tensor, "t c"]], None]
"""Called with each song and its latents before they are decoded."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """A model: its networks, its sampler, and the device that they run on.

    Example:
        >>> from acestep.flow import Euler, Linear, NoGuidance, Sampler
        >>> pipe = Pipeline.from_pretrained("micro")
        >>> song = Song(caption="a song with flute, bright major", seconds=pipe.lengths.min_seconds, seed=7)
        >>> for audio in pipe.generate([song], Sampler(Linear(steps=2), Euler(), NoGuidance())):
        ...     print(audio.samples.shape[0], "channels at", audio.sample_rate, "Hz")
        2 channels at 48000 Hz

    Args:
        network: DiT, condition encoder and tokenizer.
        autoencoder: waveforms to latents and back.
        conditioner: songs to conditioning inputs.
        lengths: durations that the checkpoint supports.
        sampler: default of ``generate``.
        checkpoint: source of the networks.
        placement: device of the networks, and whether they are offloaded while unused.
        decode_chunk: latent frames that are decoded at a time, which bounds the memory; ``None`` decodes songs whole.
        allow_untrained: whether to accept tasks that the checkpoint was not trained on.
        merged: adapters that were merged into the network's weights.
        compiled: whether to use ``torch.compile`` for the DiT's layers; the result differs by rounding only.
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
    adapter_set: AdapterSet = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter_set", AdapterSet(self.network.decoder, self.merged))

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path | OpenedWeights,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        padding: Padding | str | None = None,
        memory: MemoryMode | str = MemoryMode.full,
        allow_untrained: bool = False,
        merged: Sequence[AdapterUse] = (),
    ) -> Pipeline:
        """Build the pipeline of a checkpoint.

        Args:
            weights: a folder of any known layout, a run folder, the name of a shipped checkpoint, or what
                ``open_weights`` returned. An adapter is loaded on top of its base checkpoint.
            device: that the networks run on.
            dtype: of the networks.
            padding: see ``build_network``.
            memory: any mode but ``auto``, which ``acestep.memory.choose_mode`` resolves.
            allow_untrained: whether to accept tasks that the checkpoint was not trained on.
            merged: adapters to merge into the weights, before these are quantized.
        """
        memory, dtype = parse_enum("memory", MemoryMode, memory), named_dtype(dtype)
        opened = weights if isinstance(weights, OpenedWeights) else open_weights(weights)
        checkpoint, home = opened.checkpoint, torch.device("cpu") if memory.offloads else torch.device(device)
        network = build_network(checkpoint, "cpu" if memory.quantized else home, dtype, padding, opened.config)
        if merged:
            AdapterSet(network.decoder).merge(merged)
        if memory.quantized:
            quantize_network(network, memory.quantized)
            network.to(home)
        network.null_condition_emb.data = network.null_condition_emb.to(device)
        pipeline = cls(
            network=network,
            autoencoder=build_autoencoder(checkpoint, home, dtype),
            conditioner=build_conditioner(checkpoint, network.config, home, dtype),
            lengths=checkpoint.lengths,
            sampler=build_sampler(checkpoint, network.config),
            checkpoint=checkpoint,
            placement=Placement(torch.device(device), memory.offloads),
            decode_chunk=DECODE_CHUNK,
            allow_untrained=allow_untrained,
            merged=tuple(merged),
        )
        for folder in opened.adapters:
            load_adapter(network.decoder, folder)
            network.decoder.to(home)
            network.eval()
        return pipeline

    def with_autoencoder(self, path_or_name: str | Path) -> Pipeline:
        """The same pipeline with the autoencoder of another checkpoint, such as one with a fine-tuned decoder."""
        autoencoder, checkpoint = swap_autoencoder(self.autoencoder, self.checkpoint, path_or_name)
        return replace(self, autoencoder=autoencoder, checkpoint=checkpoint)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write all parts, with the current weights of the network, to ``folder`` in the native layout."""
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

        The noise of a song is drawn on the CPU from the song's seed, and with ``padding=masked`` the songs of a batch
        do not affect each other: the audio does not depend on ``batch_size``.

        Args:
            songs: ``Song`` or ``Request`` objects.
            sampler: default: the checkpoint's.
            batch_size: largest number of songs in a batch; only songs with the same task and strengths share one.
            normalize: output level; a song that keeps a part of its source keeps the source's level.
            on_step: called before each sampler step, for previews (``path.clean_estimate``).
            on_latents: called with each song's latents before they are decoded.

        Raises:
            ValueError: immediately, if any song is invalid for this checkpoint.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: need at least 1 song at a time")
        resolved = [self.resolve(song) for song in songs]
        level = parse_enum("normalize", Normalize, normalize)
        return self._generate(batch_songs(resolved, batch_size), sampler or self.sampler, level, on_step, on_latents)

    def resolve(self, song: AnySong) -> AnySong:
        """``song`` with normalised metadata, and ``seconds`` rounded to whole latent frames."""
        song = validate_request(song)
        self.conditioner.check(song)
        if isinstance(song, Request):
            self._check_trained(song)
            if song.source is not None:
                seconds = source_seconds(song, self.lengths, self.autoencoder.sample_rate, self.autoencoder.hop)
                return replace(song, seconds=seconds)
            if song.codes:
                song = replace(song, seconds=self._seconds_of_codes(song))
        seconds = self.lengths.default_seconds if song.seconds is None else song.seconds
        return replace(song, seconds=self._seconds(self._frames(self.lengths.check(seconds))))

    @torch.no_grad()
    def latents(
        self, songs: Sequence[Song], sampler: Sampler | None = None, on_step: OnStep | None = None
    ) -> list[Float[Tensor, "t c"]]:
        """Latents of resolved ``songs``, sampled as one batch, each at its own length."""
        return self._sample(self._prepare(songs), sampler or self.sampler, on_step)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveforms of latents, in float32."""
        with self.placement(self.autoencoder):
            latents = latents.to(weight_of(self.autoencoder))
            if self.decode_chunk is None:
                return self.autoencoder.decode(latents).float()
            return tiled_decode(self.autoencoder, latents, self.decode_chunk, DECODE_OVERLAP).float()

    @torch.no_grad()
    def encode(self, audio: Audio) -> Posterior:
        """The autoencoder's posterior of ``audio`` of any rate and channel count, as a batch of one."""
        with self.placement(self.autoencoder):
            samples = audio.samples.to(weight_of(self.autoencoder))
            return TiledEncoder()(replace(audio, samples=samples), self.autoencoder)

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
                for warning in self.conditioner.warnings(song):
                    logger.warning("%s: %s", song_label(song), warning)
            batch = self._prepare(songs)
            for item, latents in zip(batch, self._sample(batch, sampler, on_step), strict=True):
                name, rate = song_label(item.song), self.autoencoder.sample_rate
                if not latents.isfinite().all():
                    raise ValueError(f"{name}: the sampler returned non-finite latents; use dtype=float32")
                if on_latents:
                    on_latents(item.song, latents)
                samples = splice_source(self.decode(latents[None])[0].cpu(), item, self.autoencoder, self.decode)
                level = Normalize.none if keeps_source(item.song) else normalize
                yield Audio(normalize_level(samples, level, rate, name), rate, item.song)

    def _prepare(self, songs: Sequence[Song]) -> list[PreparedSong]:
        return [
            prepare_song(
                song,
                self._frames(song.seconds or self.lengths.default_seconds),
                self.autoencoder,
                self.conditioner.silence,
                self.conditioner.reference_frames,
                lambda audio: self.encode(audio).mean[0].float(),
                self._code_latents,
            )
            for song in songs
        ]

    def _code_latents(self, codes: Sequence[int]) -> Float[Tensor, "t c"]:
        with self.placement(self.network.tokenizer, self.network.detokenizer):
            return codes_to_latents(self.network, [codes])[0]

    def _sample(
        self, batch: Sequence[PreparedSong], sampler: Sampler, on_step: OnStep | None
    ) -> list[Float[Tensor, "t c"]]:
        # Without offloading the network's own device counts, since a trainer may have moved the network.
        device = self.placement.device if self.placement.offload else self.network.null_condition_emb.device
        parts = self.network, self.conditioner, self.adapter_set, self.placement
        return LatentSampler(*parts, device, self.compiled)(batch, sampler, on_step)

    def _seconds_of_codes(self, song: Request) -> float:
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
