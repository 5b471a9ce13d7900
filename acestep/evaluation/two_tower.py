"""The micro world's CLAP: a small audio and a small text tower, trained together until a song meets its words.

Contrastive as in CLAP (Wu et al. 2023), but the text tower reads all that a song says: caption, lyrics in their order,
tempo and key. About 125 thousand parameters; trained in minutes on a CPU.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from acestep.audio import Audio
from acestep.evaluation.embedders import cut_windows, mono
from acestep.files import atomic
from acestep.types import Song

_WORD = re.compile(r"\w+#?")


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """Sizes of the two towers and of the spectrogram between audio and the first convolution.

    Attributes:
        dimensions: width of the joint space.
        width: channels inside both towers.
        vocabulary: hash buckets of words.
        tokens: most words that are read.
        bands: bands of the spectrogram, spaced evenly in log frequency.
        lowest_hz: centre of the lowest band.
        bands_per_octave: 12 keeps semitones apart.
        sample_rate: rate of the audio heard.
        hop: samples between spectra.
        window_frames: spectra in a window; 160 are 6.4 s, the micro world's shortest song.
    """

    dimensions: int = 32
    width: int = 48
    vocabulary: int = 1024
    tokens: int = 64
    bands: int = 96
    lowest_hz: float = 77.8
    bands_per_octave: int = 12
    sample_rate: int = 48_000
    hop: int = 1920
    window_frames: int = 160


class TwoTower(nn.Module):
    """Spectrogram windows and word numbers to unit vectors of one space."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.words = nn.Embedding(config.vocabulary, width, padding_idx=0)
        self.positions = nn.Parameter(torch.ones(config.tokens, width))
        self.text_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.dimensions))
        self.stem = nn.Conv1d(config.bands, width, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, width, 5, padding=2 * dilation, dilation=dilation) for dilation in (1, 2, 4)
        )
        # Means over thirds of the window keep the order of syllables; the maximum keeps short events.
        self.audio_head = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, config.dimensions))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))
        self.register_buffer("bands", _band_matrix(config), persistent=False)

    def init_weights(self, generator: torch.Generator) -> None:
        """Fresh weights: fan-in scaled normal, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=0.3, generator=generator)
        nn.init.normal_(self.positions, mean=1.0, std=0.3, generator=generator)

    def spectrogram(self, samples: Float[Tensor, "b s"]) -> Float[Tensor, "b f t"]:
        """Log energy of each band, level taken out: a song's loudness must not decide what it resembles."""
        window = torch.hann_window(8192, device=samples.device)
        spectra = torch.stft(samples, 8192, self.config.hop, window=window, return_complex=True).abs()
        bands = torch.log(self.bands @ spectra[..., : self.config.window_frames] + 1e-3)
        return (bands - bands.mean((1, 2), keepdim=True)) / (bands.std((1, 2), keepdim=True) + 1e-3)

    def hear(self, spectrogram: Float[Tensor, "b f t"]) -> Float[Tensor, "b d"]:
        """Unit vectors of windows."""
        hidden = F.gelu(self.stem(spectrogram))
        for block in self.blocks:
            hidden = hidden + F.gelu(block(hidden))
        thirds = F.adaptive_avg_pool1d(hidden, 3).flatten(1)
        return F.normalize(self.audio_head(torch.cat([thirds, hidden.amax(-1)], 1)), dim=-1)

    def read(self, words: Int[Tensor, "b l"]) -> Float[Tensor, "b d"]:
        """Unit vectors of texts; word 0 is padding."""
        embedded = self.words(words) * self.positions[: words.shape[1]]
        return F.normalize(
            self.text_head(embedded.sum(1) / (words > 0).sum(1, keepdim=True).clamp(min=1).sqrt()), dim=-1
        )

    def loss(self, spectrogram: Float[Tensor, "b f t"], words: Int[Tensor, "b l"]) -> Tensor:
        """Symmetric cross entropy of finding the other half of each pair within the batch."""
        logits = self.log_temperature.clamp(max=math.log(100.0)).exp() * self.hear(spectrogram) @ self.read(words).T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def word_numbers(songs: Sequence[Song], config: TwoTowerConfig) -> Int[Tensor, "b l"]:
    """Hash bucket of each word: tempo and key, then lyrics, then caption; zeros pad.

    Lyrics come early and tags count as words, so that a syllable's position says when it is sung; the caption's words
    carry a mark, so that they are other words than the lyrics'.
    """
    rows = torch.zeros(len(songs), config.tokens, dtype=torch.long)
    for row, song in zip(rows, songs, strict=True):
        lyrics = _WORD.findall(song.lyrics.lower())
        caption = [f"caption {word}" for word in sorted(_WORD.findall(song.caption.lower()))]
        said = [f"bpm {song.bpm}", f"key {song.key}", *lyrics, *caption][: config.tokens]
        row[: len(said)] = torch.tensor([1 + zlib.crc32(word.encode()) % (config.vocabulary - 1) for word in said])
    return rows


def window_spectra(towers: TwoTower, audio: Audio) -> Float[Tensor, "w f t"]:
    """Spectrograms of the song's whole windows."""
    length = towers.config.window_frames * towers.config.hop
    return towers.spectrogram(cut_windows(mono(audio, towers.config.sample_rate), length, length))


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
    steps: int = 1500,
    batch: int = 128,
) -> tuple[TwoTower, list[float]]:
    """Towers fitted to windows and the words of the songs they were cut from.

    Args:
        spectra: :func:`window_spectra` of the songs, one window each.
        songs: the words of each window's song.
        config: sizes.
        generator: draws weights, batches and disturbances.
        steps: updates.
        batch: pairs per update; each pair's wrong answers are the rest of its batch.

    Returns:
        The towers and the loss of every step.
    """
    towers = TwoTower(config)
    towers.init_weights(generator)
    words = word_numbers(songs, config)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(spectra), (batch,), generator=generator)
        loss = towers.loss(_disturbed(spectra[rows], generator), words[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return towers.eval(), losses


def _disturbed(spectra: Float[Tensor, "b f t"], generator: torch.Generator) -> Float[Tensor, "b f t"]:
    """A random tilt over frequency and a little noise: what a codec changes, and a prompt does not ask about."""
    slope = 0.3 * torch.randn(len(spectra), 1, 1, generator=generator)
    tilt = slope * torch.linspace(-1, 1, spectra.shape[1])[None, :, None]
    return spectra.float() + tilt + 0.1 * torch.randn(spectra.shape, generator=generator)


def _band_matrix(config: TwoTowerConfig) -> Float[Tensor, "f k"]:
    """Triangles in log frequency, each as wide as its band or as one bin, whichever is wider; rows sum to 1."""
    hz = torch.fft.rfftfreq(8192, 1 / config.sample_rate)
    centres = config.lowest_hz * 2 ** (torch.arange(config.bands) / config.bands_per_octave)
    widths = (centres * (2 ** (1 / config.bands_per_octave) - 1)).clamp(min=float(hz[1]))
    triangles = (1 - (hz[None] - centres[:, None]).abs() / widths[:, None]).clamp(min=0)
    return triangles / triangles.sum(1, keepdim=True).clamp(min=1e-9)
