"""Audio in files and in notebooks."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import soundfile
import torch

from acestep.audio.audio import Audio, read_audio


def test_the_notebook_player_contains_the_audio() -> None:
    samples = torch.rand(2, 4_800, generator=torch.Generator().manual_seed(0)) - 0.5
    page = Audio(samples, 48_000)._repr_html_()
    found = re.fullmatch(r'<audio controls src="data:audio/flac;base64,(.*)"></audio>', page)
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(found[1])), dtype="float32")
    assert rate == 48_000
    torch.testing.assert_close(torch.from_numpy(decoded.T), samples, atol=2**-15, rtol=0)


def test_to_24bit_equals_writing_and_reading_a_flac(tmp_path: Path) -> None:
    """Bit by bit, with halves of a quantisation step and samples beyond full scale."""
    generator = torch.Generator().manual_seed(0)
    quiet = torch.randn(2, 5_000, generator=generator) * 10 ** torch.linspace(-8, 1, 5_000)
    steps = (torch.arange(-2_000, 3_000) + 0.5) / 2**23
    edges = torch.tensor([1.0, -1.0, 1 - 2**-24, -1 - 2**-23, 0.0]).repeat(1_000)
    audio = Audio(torch.cat([quiet, torch.stack([steps, edges])], 1), 48_000)
    assert torch.equal(read_audio(audio.save(tmp_path / "song.flac")).samples, audio.to_24bit().samples)
