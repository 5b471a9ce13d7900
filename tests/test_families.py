"""The published families: sizes, counts per part, and the sampler that each comes with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

from acestep.config.run import build, compose_config
from acestep.flow import CFG, Sampler, Shifted
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.pipeline.build import build_sampler
from acestep.training.fit import NetworkInit, load_pipeline
from acestep.verify import model_family
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.save import save_checkpoint

ENCODERS = {
    "encoder": 608_367_616,
    "tokenizer": 105_032_198,
    "detokenizer": 105_011_776,
    "null_condition_emb": 2_048,
}
COUNTS = {
    "xl": ENCODERS | {"decoder": 4_168_897_088},
    "2b": ENCODERS | {"decoder": 1_575_458_880},
}
TOTALS = {"xl": 4_987_310_726, "2b": 2_393_872_518}
FAMILIES = ("xl_sft", "xl_base", "xl_turbo", "sft_2b", "base_2b", "turbo_2b")


def config_of(name: str) -> AceStepConfig:
    return build(compose_config("train", [f"model={name}"]).model)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_the_published_counts(name: str) -> None:
    with torch.device("meta"):
        network = AceStep(config_of(name))
    counts: Counter[str] = Counter()
    for key, tensor in network.state_dict().items():
        counts[key.partition(".")[0]] += tensor.numel()
    width = "2b" if "2b" in name else "xl"
    assert counts == COUNTS[width]
    assert counts.total() == TOTALS[width]


def test_the_autoencoder_has_the_published_counts() -> None:
    with torch.device("meta"):
        autoencoder = Oobleck(OobleckConfig())
    counts = {part: sum(p.numel() for p in getattr(autoencoder, part).parameters()) for part in ("encoder", "decoder")}
    assert counts == {"encoder": 84_281_344, "decoder": 84_414_082}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_known_by_its_config(name: str) -> None:
    config = config_of(name)
    kind = next(kind for kind in ("sft", "base", "turbo") if kind in name)
    assert model_family(config.to_dict() | {"model_version": kind}) == name
    unnamed = model_family(config.to_dict())
    assert unnamed == (name if kind == "turbo" else name.replace(kind, "sft") + " or " + name.replace(kind, "base"))


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ({"is_turbo": False, "model_version": "sft"}, Sampler()),
        ({"is_turbo": False, "model_version": "turbo"}, Sampler()),
        ({"is_turbo": True}, Sampler.turbo()),
        ({"model_version": "turbo"}, Sampler.turbo()),
        ({}, Sampler()),
    ],
)
def test_the_published_config_decides_the_sampler(
    published: dict[str, Any], expected: Sampler, checkpoint: Checkpoint
) -> None:
    config = {**checkpoint.network_config, **published}
    assert build_sampler(replace(checkpoint, network_config=config, sampler={})) == expected


def test_a_checkpoints_own_entry_beats_the_release(checkpoint: Checkpoint) -> None:
    config = {**checkpoint.network_config, "is_turbo": True}
    sampler = build_sampler(
        replace(checkpoint, network_config=config, sampler={**checkpoint.sampler, "clean_last": False})
    )
    assert sampler == replace(
        Sampler.turbo(), schedule=Shifted(steps=2, shift=1.0), guidance=CFG(scale=2.0), clean_last=False
    )


def test_a_model_of_another_family_is_refused(checkpoint: Checkpoint, tmp_path: Any) -> None:
    folder = save_checkpoint(checkpoint, tmp_path / "sft")
    config = replace(AceStepConfig.from_dict(checkpoint.network_config), is_turbo=True)
    with pytest.raises(ValueError, match=r"is_turbo is False, but the config's is model\.is_turbo=True"):
        load_pipeline(str(folder), config, NetworkInit.pretrained, 0)


@pytest.fixture
def checkpoint(tmp_path: Any) -> Checkpoint:
    return tiny_checkpoint(tmp_path / "text")
