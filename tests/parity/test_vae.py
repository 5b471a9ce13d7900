"""Oobleck and its tiling equal the public reference. Golden VAE tensors are channels first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import activations, cases, load_autoencoder, load_case
from torch import Tensor

from acestep.audio.tiling import tiled_decode, windows
from acestep.data.encode import TiledEncoder
from acestep.types import Posterior

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("path", cases("encode"))
def test_encode(path: Path) -> None:
    case = load_case(path)
    autoencoder = load_autoencoder(case.model)
    posterior = autoencoder.encode(case.inputs["audio"])
    seen = {
        "parameters": autoencoder.encoder(case.inputs["audio"]),
        "mean": posterior.mean.mT,
        "std": posterior.scale.mT,
        "sample": posterior.sample(case.inputs["sample_noise"].mT).mT,
        "kl": _divergence(posterior).expand_as(case.outputs["kl"]),
    }
    for name in case.outputs:
        case.check(name, seen[name])


@pytest.mark.parametrize("path", cases("decode"))
def test_decode(path: Path) -> None:
    case = load_case(path)
    case.check("audio", load_autoencoder(case.model).decode(case.inputs["latents"].mT))


@pytest.mark.parametrize("path", cases("intermediates"))
def test_every_stage(path: Path) -> None:
    case = load_case(path)
    autoencoder = load_autoencoder(case.model)
    with activations(autoencoder) as seen:
        autoencoder.encode(case.inputs["audio"])
        autoencoder.decode(case.inputs["latents"].mT)
    for name in case.outputs:
        case.check(name, seen[name])


@pytest.mark.parametrize("path", cases("tiled"))
def test_tiled(path: Path) -> None:
    case = load_case(path)
    autoencoder = load_autoencoder(case.model)
    chunk, overlap = case.args["chunk"], case.args["overlap"]
    if case.args["kind"] == "decode":
        latents = case.inputs["latents"].mT
        case.check("audio", tiled_decode(autoencoder, latents, chunk, overlap))
        case.check("audio_full", autoencoder.decode(latents))
    else:
        # The reference does not cut the audio to whole frames, as TiledEncoder.tiles does.
        tiles = windows([case.inputs["audio"]], chunk, overlap)
        case.check("mean", TiledEncoder().encode(tiles, autoencoder).mean.mT)
        case.check("mean_full", autoencoder.encode(case.inputs["audio"]).mean.mT)


def _divergence(posterior: Posterior) -> Tensor:
    """Divergence from the standard normal summed over channels, as the reference has it: without the factor 1/2."""
    mean, variance = posterior.mean, posterior.scale.square()
    return (mean.square() + variance - variance.log() - 1).sum(-1).mean()
