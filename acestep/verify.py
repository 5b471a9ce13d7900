"""Verification of a checkpoint: its family, parameter counts, hash, and the result of a fixed forward pass."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from acestep.models.acestep import AceStep, AceStepConfig, Padding
from acestep.pipeline.build import build_network, check_device, named_dtype
from acestep.types import ConditionInputs
from acestep.weights.checkpoint import SILENCE, Checkpoint
from acestep.weights.open import find_folder, open_checkpoint
from acestep.weights.tensors import all_finite, open_tensors
from acestep.weights.upstream import language_models

FAMILY_SIZES = {"xl_{}": (2560, 9728, 32, 32, 2048), "{}_2b": (2048, 6144, 24, 16, None)}
VERSIONS = ("sft", "base")
TOLERANCES = {"float32": 2e-3, "float16": 0.1, "bfloat16": 0.1}
"""Largest difference of two machines' fingerprints, relative to the fingerprint's root mean square, by dtype."""
FRAMES, CODES, TOKENS, PROBES = 50, 10, 12, 8


@dataclass(frozen=True)
class CheckpointReport:
    """The result of ``verify_checkpoint``.

    Attributes:
        family: the published family with this config.
        parameters: parameter count of each part, in the order of the checkpoint.
        sha256: over the name, dtype, shape and bytes of every tensor, independent of order and layout.
        fingerprint: of the fixed forward pass.
        planners: names of the 5 Hz language models beside it, which are neither counted nor hashed.
    """

    family: str
    parameters: dict[str, int]
    sha256: str
    fingerprint: str
    planners: tuple[str, ...]


def verify_checkpoint(weights: str | Path, device: str = "cpu", dtype: str = "float32") -> CheckpointReport:
    """Read every tensor of the checkpoint ``weights``, and run its network once.

    Raises:
        ValueError: names the first tensor or file that is missing, broken, of a wrong shape or not finite.
    """
    check_device(device)
    checkpoint = open_checkpoint(weights)
    counts: Counter[str] = Counter()
    digests = []
    for name, tensor in _checkpoint_tensors(checkpoint):
        if not all_finite(tensor):
            raise ValueError(f"weights={weights}: {name} holds numbers that are not finite; fetch or train it again")
        if name != SILENCE:
            counts[name.partition(".")[0]] += tensor.numel()
        digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        digests.append(digest.hexdigest())
    network = build_network(checkpoint, device, named_dtype(dtype), Padding.masked)
    return CheckpointReport(
        family=model_family(checkpoint.network_config),
        parameters=dict(counts),
        sha256=hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        fingerprint=velocity_fingerprint(network),
        planners=tuple(path.name for path in language_models(find_folder(weights))),
    )


def model_family(published: Mapping[str, Any]) -> str:
    """The name of the published family with this config; SFT and base differ in ``model_version`` at most."""
    config = AceStepConfig.from_dict(published)
    sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    for name, known in FAMILY_SIZES.items():
        if (*sizes, config.encoder_hidden_size) == known:
            version = published.get("model_version")
            versions = ("turbo",) if config.is_turbo else (version,) if version in VERSIONS else VERSIONS
            return " or ".join(name.format(version) for version in versions)
    structure = "2B" if config.single_width else "XL"
    return f"none published: the {structure} structure, {config.num_hidden_layers} layers of {config.hidden_size}"


@torch.no_grad()
def velocity_fingerprint(network: AceStep) -> str:
    """Random projections of the velocity of fixed inputs, ``+0.1234,-0.5678,...``, in root mean squares per value.

    The inputs are two songs, one of them with hints, so that every part but the tokenizer is used: its rounding to
    codes can differ between machines.
    """
    generator = Generator().manual_seed(0)
    weight = network.null_condition_emb

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(weight)

    config = network.config
    channels, songs = config.audio_acoustic_hidden_dim, 2
    mask = torch.ones(songs, TOKENS, dtype=torch.bool, device=weight.device)
    hints = network.detokenizer(draw(songs, CODES, config.fsq_dim))
    source = draw(songs, hints.shape[1], channels)
    inputs = ConditionInputs(
        text=draw(songs, TOKENS, config.text_hidden_dim),
        text_mask=mask,
        lyrics=draw(songs, TOKENS, config.text_hidden_dim),
        lyrics_mask=mask,
        references=draw(songs, FRAMES, config.timbre_hidden_dim),
        reference_index=torch.arange(songs, device=weight.device),
        source=source,
        chunk_mask=torch.ones_like(source),
        is_cover=torch.tensor([False, True], device=weight.device),
        frame_mask=torch.ones(source.shape[:2], dtype=torch.bool, device=weight.device),
        hints=hints,
    )
    times = torch.tensor([0.9, 0.4], device=weight.device)
    velocity = network.velocity(draw(*source.shape), times, network.condition(inputs, source[:1])).float().cpu()
    probes = torch.randn(PROBES, velocity.numel(), generator=generator)
    return ",".join(f"{number:+.4f}" for number in (probes @ velocity.flatten() / velocity.numel() ** 0.5).tolist())


def check_fingerprint(actual: str, expected: str, dtype: str = "float32") -> None:
    """Compare two fingerprints, within the tolerance of ``dtype``.

    Raises:
        ValueError: they differ, or ``expected`` is not a fingerprint.
    """
    try:
        wanted = torch.tensor([float(number) for number in expected.split(",")])
    except ValueError as error:
        raise ValueError(f"expect={expected}: not a fingerprint, which is {PROBES} numbers with commas") from error
    given = torch.tensor([float(number) for number in actual.split(",")])
    scale = wanted.square().mean().sqrt().clamp(min=1e-3)
    if wanted.shape != given.shape or not (given - wanted).abs().max() <= TOLERANCES[dtype] * scale:
        raise ValueError(
            f"expect={expected}: the forward pass gives {actual}; these are other weights, or damaged ones"
        )


def fingerprint_file(weights: str | Path) -> Path:
    """The file of a checkpoint's fingerprint: beside its folder, since every file in it is part of the checkpoint."""
    folder = find_folder(weights)
    return folder.with_name(f"{folder.name}.fingerprint")


def _checkpoint_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, one in memory at a time; names of other networks start with their part."""
    yield from checkpoint.network.items()
    yield SILENCE, checkpoint.silence
    parts = {"autoencoder": checkpoint.autoencoder}
    if checkpoint.text_encoder is not None:
        parts["text_encoder"] = open_tensors(checkpoint.text_encoder)
    for part, tensors in parts.items():
        for name, tensor in (tensors or {}).items():
            yield f"{part}.{name}", tensor
