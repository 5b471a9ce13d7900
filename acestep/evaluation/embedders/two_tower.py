"""The micro world's CLAP: a small audio and a small text tower, trained together until a song meets its words.

Contrastive as in CLAP (Wu et al. 2023), but the text tower reads all that a song says: caption, lyrics in their order,
tempo and key. About 130 thousand parameters; trained in minutes on a CPU.
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
from acestep.types import Song

_WORD = re.compile(r"\w+#?")
BLOCK = 32
"""Frames transformed at a time: what fits a core's cache is not paid for in fresh pages of memory."""


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """Sizes of the two towers and of the spectrogram between audio and the first convolution.

    Attributes:
        dimensions: width of the joint space.
        width: channels inside both towers.
        vocabulary: hash buckets of words; in 710 the fewest of the micro world's 153 words meet.
        tokens: most words that are read, half of them of the lyrics and half of the caption.
        bands: bands of the spectrogram, spaced evenly in log frequency.
        lowest_hz: centre of the lowest band.
        bands_per_octave: 12 keeps semitones apart.
        sample_rate: rate of the audio heard.
        hop: samples between spectra.
        window_frames: spectra in a window; 160 are 6.4 s, the micro world's longest song.
        parts: equal parts of what sounds in a window, each with a mean of its own; a syllable takes a quarter.
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
    """Spectrogram windows and word numbers to unit vectors of one space."""

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
        self.where_heard = list(_where_heard(self.bands))

    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights: fan-in scaled normal, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=0.3, generator=generator)
        nn.init.normal_(self.positions, generator=generator)

    def spectrogram(self, samples: Float[Tensor, "b s"]) -> Float[Tensor, "b f t"]:
        """Log energy of each band, level taken out: a song's loudness must not decide what it resembles."""
        samples = samples / samples.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
        # Frames centred as torch.stft does it, which takes longer on a CPU.
        padded = F.pad(samples[:, None], (4096, 4096), mode="reflect")[:, 0]
        hann = torch.hann_window(8192, device=samples.device)
        heard = []
        for frames in padded.unfold(-1, 8192, self.config.hop)[:, : self.config.window_frames].split(BLOCK, 1):
            spectra = torch.fft.rfft(frames * hann)[..., : self.bands.shape[1]]
            size = (spectra.real.square() + spectra.imag.square()).sqrt().transpose(1, 2)
            heard.append(torch.cat([self.bands[rows, bins] @ size[:, bins] for rows, bins in self.where_heard], 1))
        bands = torch.log(torch.cat(heard, -1) + 1e-3)
        return (bands - bands.mean((1, 2), keepdim=True)) / (bands.std((1, 2), keepdim=True) + 1e-3)

    def hear(self, spectrogram: Float[Tensor, "b f t"]) -> Float[Tensor, "b d"]:
        """Unit vectors of windows.

        Means over parts of the song keep the order of syllables, the maximum short events; beside what the convolutions
        find, the head sees the spectrum itself, which tells vowels and instruments, and how much each band moves.
        """
        hidden = F.gelu(self.stem(spectrogram))
        for block in self.blocks:
            hidden = hidden + F.gelu(block(hidden))
        seen = [
            hidden @ _parts(spectrogram, self.config.parts, hidden.shape[-1]),
            hidden.amax(-1, keepdim=True),
            self.balance((spectrogram @ _parts(spectrogram, self.config.parts, spectrogram.shape[-1])).mT).mT,
            self.change(spectrogram.std(-1))[..., None],
        ]
        return F.normalize(self.audio_head(torch.cat(seen, -1).flatten(1)), dim=-1)

    def read(self, words: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts; word 0 is padding."""
        ordered, unordered = self.words(words).chunk(2, 1)
        total = (ordered * self.positions).sum(1) + unordered.sum(1)
        return F.normalize(self.text_head(total / (words > 0).sum(1, keepdim=True).clamp(min=1).sqrt()), dim=-1)

    def loss(
        self, spectrogram: Float[Tensor, "b f t"], words: Int[Tensor, "b l"], misses: Int[Tensor, "b m l"]
    ) -> Tensor:
        """Symmetric cross entropy of finding the other half of each pair within the batch.

        ``misses`` are words that are nearly those of each song: among them, too, a song must find its own.
        """
        sharpness = self.log_temperature.clamp(max=math.log(100.0)).exp()
        heard = self.hear(spectrogram)
        logits = sharpness * heard @ self.read(words).T
        near = sharpness * (self.read(misses.flatten(0, 1)).unflatten(0, misses.shape[:2]) @ heard[:, :, None])[..., 0]
        target = torch.arange(len(logits), device=logits.device)
        found = F.cross_entropy(torch.cat([logits, near], 1), target)
        return (found + F.cross_entropy(logits.T, target)) / 2


def word_numbers(songs: Sequence[Song], config: TwoTowerConfig) -> Int[Tensor, "b l"]:
    """Hash bucket of each word; zeros pad. First half: tempo, key and lyrics; second half: the caption.

    In the first half a word's place counts, and tags are words, so that a syllable's place says when it is sung. The
    caption's words have no order, and carry a mark, so that they are other words than the lyrics'.
    """
    rows = torch.zeros(len(songs), 2, config.tokens // 2, dtype=torch.long)
    for row, song in zip(rows, songs, strict=True):
        lyrics, caption = _WORD.findall(song.lyrics.lower()), _WORD.findall(song.caption.lower())
        halves = [f"bpm {song.bpm}", f"key {song.key}", *lyrics], [f"caption {word}" for word in sorted(caption)]
        for part, said in zip(row, halves, strict=True):
            numbers = [1 + zlib.crc32(word.encode()) % (config.vocabulary - 1) for word in said[: len(part)]]
            part[: len(numbers)] = torch.tensor(numbers, dtype=torch.long)
    return rows.flatten(1)


def window_spectra(towers: TwoTower, audio: Audio) -> Float[Tensor, "w f t"]:
    """Spectrograms of the song's whole windows."""
    length = towers.config.window_frames * towers.config.hop
    windows = cut_windows(mono(audio, towers.config.sample_rate), length, length)
    return torch.cat([towers.spectrogram(window) for window in windows.split(1)])


def save(towers: TwoTower, path: str | Path) -> None:
    """Weights in half precision, the config as metadata."""
    config = {name: str(value) for name, value in asdict(towers.config).items()}
    tensors = {name: value.half().contiguous() for name, value in towers.state_dict().items()}
    with atomic(path) as aside:
        save_file(tensors, aside, metadata=config)


def load(path: str | Path) -> TwoTower:
    """Towers that :func:`save` wrote, in float32."""
    with safe_open(path, "pt") as file:
        fields, metadata = TwoTowerConfig.__dataclass_fields__, file.metadata()
        config = TwoTowerConfig(**{name: type(field.default)(metadata[name]) for name, field in fields.items()})
        towers = TwoTower(config)
        towers.load_state_dict({name: file.get_tensor(name).float() for name in towers.state_dict()})
    return towers


def train(
    spectra: Float[Tensor, "n f t"],
    songs: Sequence[Song],
    config: TwoTowerConfig,
    generator: torch.Generator,
    *,
    misses: Sequence[Sequence[Song]] = (),
    steps: int = 1500,
    batch: int = 128,
) -> tuple[TwoTower, list[float]]:
    """Towers fitted to windows and the words of the songs they were cut from.

    Args:
        spectra: :func:`window_spectra` of the songs, one window each.
        songs: the words of each window's song.
        config: sizes.
        generator: draws weights, batches and disturbances.
        misses: for each song equally many songs of other words, each wrong in one fact: without them a tower that hears
            the loudest facts finds its pair, and need not listen for the others.
        steps: updates.
        batch: pairs per update; each pair's wrong answers are the rest of its batch.

    Returns:
        The towers and the loss of every step.
    """
    towers = TwoTower(config)
    towers.init_weights(generator)
    words = word_numbers(songs, config)
    wrong = word_numbers([one for near in misses for one in near], config)
    wrong = wrong.view(len(songs), len(wrong) // len(songs), config.tokens)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(spectra), (batch,), generator=generator)
        loss = towers.loss(_disturbed(spectra[rows], generator), words[rows], wrong[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return towers.eval(), losses


def _disturbed(spectra: Float[Tensor, "b f t"], generator: torch.Generator) -> Float[Tensor, "b f t"]:
    """What a codec or a sampler changes, and a prompt does not ask about: balance, contrast, floor, a little noise."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(len(spectra), *shape, generator=generator)

    balance = F.interpolate(0.3 * drawn(1, 7), spectra.shape[1], mode="linear", align_corners=True).transpose(1, 2)
    floor = -1.8 + 0.5 * drawn(1, 1)
    changed = torch.logaddexp(6 * spectra.float(), 6 * floor) / 6 * (0.15 * drawn(1, 1)).exp()
    return changed + balance + 0.15 * drawn(*spectra.shape[1:])


def _parts(spectrogram: Float[Tensor, "b f t"], parts: int, frames: int) -> Float[Tensor, "b u p"]:
    """Weights that take the mean over each of ``parts`` equal parts of the ``frames`` until a song falls silent."""
    level = spectrogram.amax(1)
    floor = level.amin(1, keepdim=True) + 0.1 * (level.amax(1, keepdim=True) - level.amin(1, keepdim=True))
    place = torch.arange(1, level.shape[1] + 1, device=level.device)
    end = (place * (level > floor)).amax(1).clamp(min=1) * frames / level.shape[1]
    at = (torch.arange(frames, device=level.device) + 0.5) / end[:, None] * parts
    inside = (at[..., None].floor() == torch.arange(parts, device=level.device)).to(spectrogram)
    return inside / inside.sum(1, keepdim=True).clamp(min=1)


def _where_heard(bands: Float[Tensor, "f k"], count: int = 24) -> Iterator[tuple[slice, slice]]:
    """Rows of the matrix by ``count``, and the columns outside of which these are zero."""
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
    heard = int(triangles.any(0).nonzero().max()) + 1
    return (triangles / triangles.sum(1, keepdim=True).clamp(min=1e-9))[:, :heard].contiguous()
