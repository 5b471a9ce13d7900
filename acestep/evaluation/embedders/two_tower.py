"""The micro world's CLAP: a small audio and a small text encoder with a joint space, trained contrastively.

As CLAP (Wu et al. 2023), but the text tower reads the whole description: caption, lyrics in their order, tempo and key.
About 130 thousand parameters; trained in minutes on a CPU.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import cut_windows, mono
from acestep.files import atomic
from acestep.songs import Song

_WORD = re.compile(r"\w+#?")
BLOCK = 32
"""Frames transformed at a time: buffers that fit a core's cache need no new pages of memory."""


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """Sizes of the two towers and of the spectrogram between audio and the first convolution.

    Attributes:
        dimensions: width of the joint space.
        width: channels inside both towers.
        vocabulary: hash buckets of words; in 710 the fewest of the micro world's 153 words collide.
        tokens: maximum number of words, half of them for the lyrics and half for the caption.
        bands: bands of the spectrogram, spaced evenly in log frequency.
        lowest_hz: centre of the lowest band.
        bands_per_octave: 12 keeps semitones apart.
        sample_rate: rate of the audio.
        hop: samples between spectra.
        window_frames: spectra in a window; 160 are 6.4 s, the micro world's longest song.
        parts: equal parts of a window's audible length, each averaged separately; a syllable takes a quarter.
    """

    dimensions: int = 32
    width: int = 48
    vocabulary: int = 710
    tokens: int = 64
    bands: int = 96
    lowest_hz: float = 77.8
    bands_per_octave: int = 12
    sample_rate: int = 48_000
    hop: int = 1920
    window_frames: int = 160
    parts: int = 4


class TwoTower(nn.Module):
    """Encoders of spectrogram windows and of text tokens to unit vectors of one space."""

    bands: Tensor

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.words = nn.Embedding(config.vocabulary, width, padding_idx=0)
        self.positions = nn.Parameter(torch.ones(config.tokens // 2, width))
        self.text_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.dimensions))
        self.stem = nn.Conv1d(config.bands, width, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation) for dilation in (1, 2, 4)
        )
        self.balance, self.change = nn.Linear(config.bands, width), nn.Linear(config.bands, width)
        self.audio_head = nn.Sequential(
            nn.Linear(2 * (config.parts + 1) * width, width), nn.GELU(), nn.Linear(width, config.dimensions)
        )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.register_buffer("bands", _band_matrix(config), persistent=False)
        self.band_bins = list(_band_bins(self.bands))

    def init_weights(self, generator: torch.Generator) -> None:
        """Random weights: fan-in scaled normal, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=0.3, generator=generator)
        nn.init.normal_(self.positions, generator=generator)

    def spectrogram(self, samples: Float[Tensor, "b s"]) -> Float[Tensor, "b f t"]:
        """Log energy of each band, normalised, so that similarity does not depend on loudness."""
        samples = samples / samples.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        # Frames centred as in torch.stft, which is slower on a CPU.
        padded = F.pad(samples[:, None], (4096, 4096), mode="reflect")[:, 0]
        hann = torch.hann_window(8192, device=samples.device)
        blocks = []
        for frames in padded.unfold(-1, 8192, self.config.hop)[:, : self.config.window_frames].split(BLOCK, 1):
            spectra = torch.fft.rfft(frames * hann)[..., : self.bands.shape[1]]
            size = (spectra.real.square() + spectra.imag.square()).sqrt().transpose(1, 2)
            blocks.append(torch.cat([self.bands[rows, bins] @ size[:, bins] for rows, bins in self.band_bins], 1))
        bands = torch.log(torch.cat(blocks, -1) + 1e-3)
        return (bands - bands.mean((1, 2), keepdim=True)) / (bands.std((1, 2), keepdim=True) + 1e-3)

    def encode_audio(self, spectrogram: Float[Tensor, "b f t"]) -> Float[Tensor, "b d"]:
        """Unit vectors of windows.

        Means over parts of the song keep the order of syllables, the maximum keeps short events. Beside the features of
        the convolutions, the head gets the mean spectrum, which separates vowels and instruments, and each band's
        standard deviation.
        """
        hidden = F.gelu(self.stem(spectrogram))
        for block in self.blocks:
            hidden = hidden + F.gelu(block(hidden))
        parts = [
            hidden @ _parts(spectrogram, self.config.parts, hidden.shape[-1]),
            hidden.amax(-1, keepdim=True),
            self.balance((spectrogram @ _parts(spectrogram, self.config.parts, spectrogram.shape[-1])).mT).mT,
            self.change(spectrogram.std(-1))[..., None],
        ]
        return F.normalize(self.audio_head(torch.cat(parts, -1).flatten(1)), dim=-1)

    def encode_text(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts; token 0 is padding."""
        ordered, unordered = self.words(tokens).chunk(2, 1)
        total = (ordered * self.positions).sum(1) + unordered.sum(1)
        return F.normalize(self.text_head(total / (tokens > 0).sum(1, keepdim=True).clamp(min=1).sqrt()), dim=-1)

    def loss(
        self, spectrogram: Float[Tensor, "b f t"], tokens: Int[Tensor, "b l"], negatives: Int[Tensor, "b m l"]
    ) -> Tensor:
        """Symmetric InfoNCE over the batch; ``negatives`` are hard negatives among the texts of each song."""
        scale = self.log_temperature.clamp(max=math.log(100.0)).exp()
        audio = self.encode_audio(spectrogram)
        logits = scale * audio @ self.encode_text(tokens).T
        hard = self.encode_text(negatives.flatten(0, 1)).unflatten(0, negatives.shape[:2])
        hard_logits = scale * (hard @ audio[:, :, None])[..., 0]
        target = torch.arange(len(logits), device=logits.device)
        audio_to_text = F.cross_entropy(torch.cat([logits, hard_logits], 1), target)
        return (audio_to_text + F.cross_entropy(logits.T, target)) / 2


def text_token_ids(songs: Sequence[Song], config: TwoTowerConfig) -> Int[Tensor, "b l"]:
    """Hash bucket of each word; zeros pad. First half: tempo, key and lyrics; second half: the caption.

    In the first half positions matter and tags are words, so that a syllable's position encodes when it is sung. The
    caption's words are sorted and prefixed, so that they differ from the same words in the lyrics.
    """
    rows = torch.zeros(len(songs), 2, config.tokens // 2, dtype=torch.long)
    for row, song in zip(rows, songs, strict=True):
        lyrics, caption = _WORD.findall(song.lyrics.lower()), _WORD.findall(song.caption.lower())
        halves = [f"bpm {song.bpm}", f"key {song.key}", *lyrics], [f"caption {word}" for word in sorted(caption)]
        for part, words in zip(row, halves, strict=True):
            ids = [1 + zlib.crc32(word.encode()) % (config.vocabulary - 1) for word in words[: len(part)]]
            part[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return rows.flatten(1)


def window_spectra(towers: TwoTower, audio: Audio) -> Float[Tensor, "w f t"]:
    """Spectrograms of the song's whole windows."""
    length = towers.config.window_frames * towers.config.hop
    windows = cut_windows(mono(audio, towers.config.sample_rate), length, length)
    return torch.cat([towers.spectrogram(window) for window in windows.split(1)])


def save_two_tower(towers: TwoTower, path: str | Path) -> None:
    """Write weights in half precision, with the config as metadata."""
    config = {name: str(value) for name, value in asdict(towers.config).items()}
    tensors = {name: value.half().contiguous() for name, value in towers.state_dict().items()}
    with atomic(path) as aside:
        save_file(tensors, aside, metadata=config)


def load_two_tower(path: str | Path) -> TwoTower:
    """Inverse of :func:`save_two_tower`, in float32."""
    with safe_open(path, "pt") as file:
        defaults, metadata = asdict(TwoTowerConfig()), file.metadata()
        towers = TwoTower(TwoTowerConfig(**{name: type(value)(metadata[name]) for name, value in defaults.items()}))
        towers.load_state_dict({name: file.get_tensor(name).float() for name in towers.state_dict()})
    return towers


def train_two_tower(
    spectra: Float[Tensor, "n f t"],
    songs: Sequence[Song],
    config: TwoTowerConfig,
    generator: torch.Generator,
    *,
    negatives: Sequence[Sequence[Song]] = (),
    steps: int = 1500,
    batch: int = 128,
) -> tuple[TwoTower, list[float]]:
    """A model trained on pairs of a window and its song's description.

    Args:
        spectra: :func:`window_spectra` of the songs, one window each.
        songs: the description of each window's song.
        config: sizes.
        generator: draws weights, batches and augmentations.
        negatives: hard negatives of each song, equally many, each wrong in one fact: without them the most salient
            facts suffice to find the pair, and the others are not learned.
        steps: updates.
        batch: pairs per update, each other's negatives.

    Returns:
        The model and the loss of every step.
    """
    towers = TwoTower(config)
    towers.init_weights(generator)
    tokens = text_token_ids(songs, config)
    wrong = text_token_ids([song for group in negatives for song in group], config)
    wrong = wrong.view(len(songs), len(wrong) // len(songs), config.tokens)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(spectra), (batch,), generator=generator)
        loss = towers.loss(_augment(spectra[rows], generator), tokens[rows], wrong[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return towers.eval(), losses


def _augment(spectra: Float[Tensor, "b f t"], generator: torch.Generator) -> Float[Tensor, "b f t"]:
    """Random changes of a codec or sampler that no prompt asks for: balance, contrast, noise floor, a little noise."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(len(spectra), *shape, generator=generator)

    balance = F.interpolate(0.3 * randn(1, 7), spectra.shape[1], mode="linear", align_corners=True).transpose(1, 2)
    floor = -1.8 + 0.5 * randn(1, 1)
    changed = torch.logaddexp(6 * spectra.float(), 6 * floor) / 6 * (0.15 * randn(1, 1)).exp()
    return changed + balance + 0.15 * randn(*spectra.shape[1:])


def _parts(spectrogram: Float[Tensor, "b f t"], parts: int, frames: int) -> Float[Tensor, "b u p"]:
    """Weights of the mean over each of ``parts`` equal parts of the audible ``frames``, up to the last one."""
    level = spectrogram.amax(1)
    floor = level.amin(1, keepdim=True) + 0.1 * (level.amax(1, keepdim=True) - level.amin(1, keepdim=True))
    position = torch.arange(1, level.shape[1] + 1, device=level.device)
    end = (position * (level > floor)).amax(1).clamp(min=1) * frames / level.shape[1]
    at = (torch.arange(frames, device=level.device) + 0.5) / end[:, None] * parts
    inside = (at[..., None].floor() == torch.arange(parts, device=level.device)).to(spectrogram)
    return inside / inside.sum(1, keepdim=True).clamp(min=1)


def _band_bins(bands: Float[Tensor, "f k"], count: int = 24) -> Iterator[tuple[slice, slice]]:
    """Groups of ``count`` rows of the matrix, with the columns outside of which they are zero."""
    for start in range(0, len(bands), count):
        rows = slice(start, start + count)
        bins = bands[rows].any(0).nonzero()
        yield rows, slice(int(bins.min()), int(bins.max()) + 1)


def _band_matrix(config: TwoTowerConfig) -> Float[Tensor, "f k"]:
    """Triangles in log frequency, each as wide as its band or as one bin, whichever is wider; rows sum to 1."""
    hz = torch.fft.rfftfreq(8192, 1 / config.sample_rate)
    centres = config.lowest_hz * 2 ** (torch.arange(config.bands) / config.bands_per_octave)
    widths = (centres * (2 ** (1 / config.bands_per_octave) - 1)).clamp(min=float(hz[1]))
    triangles = (1 - (hz[None] - centres[:, None]).abs() / widths[:, None]).clamp(min=0)
    used = int(triangles.any(0).nonzero().max()) + 1
    return (triangles / triangles.sum(1, keepdim=True).clamp(min=1e-9))[:, :used].contiguous()
