"""Waveforms in and out of files and notebooks."""

from __future__ import annotations

import base64
import io
import re

import soundfile
import torch

from acestep.audio import Audio


def test_a_notebook_plays_what_is_there() -> None:
    samples = torch.rand(2, 4_800, generator=torch.Generator().manual_seed(0)) - 0.5
    page = Audio(samples, 48_000)._repr_html_()
    found = re.fullmatch(r'<audio controls src="data:audio/flac;base64,(.*)"></audio>', page)
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(found[1])), dtype="float32")
    assert rate == 48_000
    torch.testing.assert_close(torch.from_numpy(heard.T), samples, atol=2**-15, rtol=0)
