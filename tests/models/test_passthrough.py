"""Initialisation that passes the noisy input through the network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from acestep import Pipeline
from acestep.models.acestep import AceStep
from acestep.models.passthrough import init_passthrough
from acestep.songs import Song


def test_velocity_follows_the_noise_and_depends_on_the_seed_only() -> None:
    pipeline = Pipeline.from_pretrained("micro_base")
    network = AceStep(pipeline.network.config).eval()
    noise = torch.randn(2, 20, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        inputs = pipeline.conditioner.encode([Song(caption="piano", seconds=0.8)] * 2, [20, 20])
        conditions = pipeline.network.condition(inputs, pipeline.conditioner.silence)
        found = {}
        for start in ("scratch", "passthrough", "again"):
            generator = torch.Generator().manual_seed(1)
            if start == "scratch":
                network.init_weights(generator)
            else:
                init_passthrough(network, generator)
            found[start] = network.velocity(noise, torch.ones(2), conditions)
    alike = {name: torch.cosine_similarity(v.flatten(), noise.flatten(), dim=0) for name, v in found.items()}
    assert alike["passthrough"] > 0.25 > 0.1 > alike["scratch"].abs()
    assert torch.equal(found["passthrough"], found["again"])


def test_a_network_as_narrow_as_a_patch_is_an_error() -> None:
    config = replace(Pipeline.from_pretrained("micro_base").network.config, hidden_size=128)
    with pytest.raises(ValueError, match=r"hidden_size=128: network=passthrough needs more than the 128"):
        init_passthrough(AceStep(config), torch.Generator())
