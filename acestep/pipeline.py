"""Songs in words to songs as audio, and audio to latents: every waveform the project makes comes from here."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acestep.adapters import adapter_base, is_adapter, load_adapter
from acestep.assembly import build_autoencoder, build_conditioner, build_network, build_sampler, choice, named_dtype
from acestep.audio import Audio
from acestep.conditioning.encode import Conditioner
from acestep.conditioning.metadata import checked
from acestep.data.encode import TiledEncoder
from acestep.flow.noise import SongNoise, song_generators
from acestep.flow.sampler import OnStep, Sampler
from acestep.models.acestep import AceStep
from acestep.models.dit import Padding
from acestep.tiling import tiled_decode
from acestep.types import Autoencoder, Conditions, Posterior, Song
from acestep.units import frames_to_seconds, seconds_to_frames
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.open import find_folder, open_checkpoint
from acestep.weights.save import save_checkpoint

PEAK = 10 ** (-1 / 20)
"""-1 dBFS."""
SILENT = 1e-6
DECODE_CHUNKS = {"oobleck": 512}
DECODE_OVERLAP = 64
"""Latent frames, as upstream (``vae_decode.py``). The spectral autoencoder's phases run through a whole song."""

logger = logging.getLogger(__name__)


class Normalize(Enum):
    """What happens to a song's level after decoding.

    ``peak`` scales every song to a peak of -1 dBFS, as upstream does; ``none`` only divides by the peak where it
    exceeds 1, so that nothing clips. Loudness is not to be judged on ``peak``.
    """

    peak = "peak"
    none = "none"


@dataclass(frozen=True)
class Pipeline:
    """The parts of a model, built, as one instrument.

    Example:
        >>> pipe = Pipeline.from_pretrained("micro")  # doctest: +SKIP
        >>> for audio in pipe.generate([Song(caption="…", seconds=8.0, seed=7)]):  # doctest: +SKIP
        ...     audio.save("song.flac")

    Args:
        network: DiT, condition encoder and tokenizer.
        autoencoder: waveform to latents and back.
        conditioner: songs to condition inputs.
        lengths: seconds of music that the checkpoint makes.
        sampler: used where ``generate`` gets none.
        checkpoint: what the parts were built from.
        decode_chunk: latent frames that are decoded at a time, which bounds the memory; ``None`` decodes songs whole.
    """

    network: AceStep
    autoencoder: Autoencoder
    conditioner: Conditioner
    lengths: Lengths
    sampler: Sampler
    checkpoint: Checkpoint
    decode_chunk: int | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        padding: Padding | str | None = None,
    ) -> Pipeline:
        """The checkpoint in a folder (any known layout, or a run folder), or a shipped one by its name.

        A folder that holds an adapter is loaded on top of the weights that it was trained on.
        """
        folder = find_folder(path_or_name)
        if not is_adapter(folder):
            return cls.from_checkpoint(open_checkpoint(folder), device, dtype, padding)
        pipeline = cls.from_pretrained(adapter_base(folder), device, dtype, padding)
        load_adapter(pipeline.network.decoder, folder)
        pipeline.network.to(device, named_dtype(dtype)).eval()
        return pipeline

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = "float32",
        padding: Padding | str | None = None,
    ) -> Pipeline:
        """The parts of ``checkpoint``, built on ``device``."""
        dtype = named_dtype(dtype)
        network = build_network(checkpoint, device, dtype, padding)
        return cls(
            network=network,
            autoencoder=build_autoencoder(checkpoint, device, dtype),
            conditioner=build_conditioner(checkpoint, network.config, device, dtype),
            lengths=checkpoint.lengths,
            sampler=build_sampler(checkpoint),
            checkpoint=checkpoint,
            decode_chunk=DECODE_CHUNKS.get(checkpoint.autoencoder_class),
        )

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
    ) -> Iterator[Audio]:
        """Audio of each song, in order, as batches finish.

        A song's noise is drawn on the CPU from its own seed, and with ``padding=masked`` it does not hear what it is
        batched with: ``batch_size`` changes the speed, not the music.

        Raises:
            ValueError: at once, if any song asks for what the checkpoint cannot make.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: need at least 1 song at a time")
        resolved = [self.resolve(song) for song in songs]
        return self._generate(resolved, sampler or self.sampler, batch_size, choice("normalize", Normalize, normalize))

    def resolve(self, song: Song) -> Song:
        """``song`` as it will be made: metadata in the trained form, ``seconds`` a whole number of latent frames."""
        seconds = self.lengths.default_seconds if song.seconds is None else song.seconds
        frames = self._frames(self.lengths.check(seconds))
        seconds = frames_to_seconds(frames, self.autoencoder.sample_rate, self.autoencoder.hop)
        return replace(checked(song), seconds=seconds)

    @torch.no_grad()
    def latents(
        self, songs: Sequence[Song], sampler: Sampler | None = None, on_step: OnStep | None = None
    ) -> list[Float[Tensor, "t c"]]:
        """Latents of resolved ``songs``, made as one batch, each at its own length."""
        frames = [self._frames(song.seconds) for song in songs]
        weight = next(self.network.parameters())
        generators = song_generators([song.seed for song in songs])
        fresh = SongNoise(generators, frames, self.autoencoder.latent_channels, weight.device)
        sampler = sampler or self.sampler
        with _evaluating(self.network):
            inputs = self.conditioner.encode(songs, frames).to(weight.device, weight.dtype)
            conditions = self.network.condition(inputs, self.conditioner.silence.to(weight))
            null = self.network.null(conditions)
            made = sampler(self._velocity, fresh(), conditions, null, draw=fresh, on_step=on_step)
        return [latents[:length] for latents, length in zip(made, frames, strict=True)]

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b t c"]) -> Float[Tensor, "b a s"]:
        """Waveforms of latents, in float32."""
        latents = latents.to(self._autoencoder_weight())
        if self.decode_chunk is None:
            return self.autoencoder.decode(latents).float()
        return tiled_decode(self.autoencoder, latents, self.decode_chunk, DECODE_OVERLAP).float()

    @torch.no_grad()
    def encode(self, audio: Audio) -> Posterior:
        """The autoencoder's belief about ``audio`` of any rate and channel count, as a batch of one."""
        weight = self._autoencoder_weight()
        return TiledEncoder()(replace(audio, samples=audio.samples.to(weight)), self.autoencoder)

    def _generate(self, songs: list[Song], sampler: Sampler, batch_size: int, normalize: Normalize) -> Iterator[Audio]:
        for start in range(0, len(songs), batch_size):
            batch = songs[start : start + batch_size]
            for song, latents in zip(batch, self.latents(batch, sampler), strict=True):
                if not latents.isfinite().all():
                    raise ValueError(f"song.seed={song.seed}: the sampler left the finite numbers; use dtype=float32")
                samples = levelled(self.decode(latents[None])[0].cpu(), normalize)
                yield Audio(samples, self.autoencoder.sample_rate, song)

    def _velocity(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        dtype = conditions.states.dtype
        return self.network.velocity(x_t.to(dtype), t, conditions).to(x_t.dtype)

    def _frames(self, seconds: float) -> int:
        return seconds_to_frames(seconds, self.autoencoder.sample_rate, self.autoencoder.hop)

    def _autoencoder_weight(self) -> Tensor:
        tensors = [*self.autoencoder.parameters(), *self.autoencoder.buffers()]
        return next(tensor for tensor in tensors if tensor.is_floating_point())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode, then as it was: songs are also made in the midst of training."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def levelled(samples: Float[Tensor, "a s"], normalize: Normalize) -> Float[Tensor, "a s"]:
    """A song at the level that ``normalize`` names (upstream ``generate_music_decode.py``, ``audio_utils.py``)."""
    peak = float(samples.abs().max())
    if normalize is Normalize.peak:
        return samples * (PEAK / peak) if peak >= SILENT else samples
    return samples / peak if peak > 1 else samples
