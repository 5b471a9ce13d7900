"""Is a checkpoint whole, and which one is it? Its family, counts, hash, and what one fixed forward pass gives."""

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
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import find_folder, open_checkpoint
from acestep.weights.tensors import all_finite, open_tensors
from acestep.weights.upstream import language_models

FAMILY_SIZES = {"xl_{}": (2560, 9728, 32, 32, 2048), "{}_2b": (2048, 6144, 24, 16, None)}
KINDS = ("sft", "base")
TOLERANCE = 2e-3
"""How far two machines' fingerprints may lie apart, in root mean squares of the velocity, in float32."""
HALF_TOLERANCE = 0.1
"""The same where the pass ran in 16 bits."""
SILENCE = "silence_latent"
"""Hashed with the parameters; not counted, since it is none."""
FRAMES, CODES, TOKENS, PROBES = 50, 10, 12, 8


@dataclass(frozen=True)
class Verified:
    """What ``verify`` found.

    Attributes:
        family: the published family, by its config.
        parameters: numbers by part, in the order of the checkpoint.
        sha256: over every tensor's name, type, shape and bytes, whatever their order or file.
        fingerprint: of the fixed forward pass.
        planners: names of the 5 Hz language models that came with it; they are neither counted nor hashed.
    """

    family: str
    parameters: dict[str, int]
    sha256: str
    fingerprint: str
    planners: tuple[str, ...]


def verify(weights: str | Path, device: str = "cpu", dtype: str = "float32") -> Verified:
    """Read all of the checkpoint that ``weights`` names, and use its network once.

    Raises:
        ValueError: names the first tensor or file that is missing, misshapen, broken or not finite.
    """
    check_device(device)
    checkpoint = open_checkpoint(weights)
    counts: Counter[str] = Counter()
    digests = []
    for name, tensor in _tensors(checkpoint):
        if not all_finite(tensor):
            raise ValueError(f"weights={weights}: {name} holds numbers that are not finite; fetch or train it again")
        if name != SILENCE:
            counts[name.partition(".")[0]] += tensor.numel()
        digests.append(_digest(name, tensor))
    network = build_network(checkpoint, device, named_dtype(dtype), Padding.masked)
    return Verified(
        family=family(checkpoint.network_config),
        parameters=dict(counts),
        sha256=hashlib.sha256("".join(sorted(digests)).encode()).hexdigest(),
        fingerprint=fingerprint(network),
        planners=tuple(path.name for path in language_models(find_folder(weights))),
    )


def family(published: Mapping[str, Any]) -> str:
    """The name of the published family that a config is of; SFT and base differ in ``model_version`` at most."""
    config = AceStepConfig.from_dict(published)
    sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    for name, known in FAMILY_SIZES.items():
        if (*sizes, config.encoder_hidden_size) == known:
            version = published.get("model_version")
            kinds = ("turbo",) if config.is_turbo else (version,) if version in KINDS else KINDS
            return " or ".join(name.format(kind) for kind in kinds)
    structure = "2B" if config.single_width else "XL"
    return f"none published: the {structure} structure, {config.num_hidden_layers} layers of {config.hidden_size}"


@torch.no_grad()
def fingerprint(network: AceStep) -> str:
    """Numbers that the velocity of fixed inputs gives, ``+0.1234,-0.5678,...``.

    Two songs, one of them with hints, so that all but the tokenizer takes part: its rounding to codes can fall either
    way on different machines. The numbers are projections on random directions, in root mean squares per value.
    """
    generator = Generator().manual_seed(0)
    weight = network.null_condition_emb

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(weight)

    config = network.config
    channels, songs = config.audio_acoustic_hidden_dim, 2
    every = torch.ones(songs, TOKENS, dtype=torch.bool, device=weight.device)
    hints = network.detokenizer(draw(songs, CODES, config.fsq_dim))
    source = draw(songs, hints.shape[1], channels)
    inputs = ConditionInputs(
        text=draw(songs, TOKENS, config.text_hidden_dim),
        text_mask=every,
        lyrics=draw(songs, TOKENS, config.text_hidden_dim),
        lyrics_mask=every,
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


def check_fingerprint(found: str, expected: str, dtype: str = "float32") -> None:
    """Refuse a fingerprint that is not ``expected``'s, within what machines differ in.

    Raises:
        ValueError: if they differ, or ``expected`` is no fingerprint.
    """
    try:
        wanted = torch.tensor([float(number) for number in expected.split(",")])
    except ValueError as error:
        raise ValueError(f"expect={expected}: not a fingerprint, which is {PROBES} numbers with commas") from error
    given = torch.tensor([float(number) for number in found.split(",")])
    tolerance = TOLERANCE if dtype == "float32" else HALF_TOLERANCE
    scale = wanted.square().mean().sqrt().clamp(min=1e-3)
    if wanted.shape != given.shape or not (given - wanted).abs().max() <= tolerance * scale:
        raise ValueError(f"expect={expected}: the forward pass gives {found}; these are other weights, or damaged ones")


def fingerprint_file(weights: str | Path) -> Path:
    """Where a checkpoint's fingerprint is kept: beside its folder, since all that is in it counts as the checkpoint."""
    folder = find_folder(weights)
    return folder.with_name(f"{folder.name}.fingerprint")


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint, one in memory at a time; those of other networks after the name of their part."""
    yield from checkpoint.network.items()
    yield SILENCE, checkpoint.silence
    if checkpoint.autoencoder is not None:
        for name, tensor in checkpoint.autoencoder.items():
            yield f"autoencoder.{name}", tensor
    if checkpoint.text_encoder is not None:
        for name, tensor in open_tensors(checkpoint.text_encoder).items():
            yield f"text_encoder.{name}", tensor


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
