"""Reading golden data: numbers that the public reference code produced, one case per pair of json and safetensors.

Cases are discovered, never named: a test asks for a kind (the case's folder, such as ``decoder``) and gets whatever
lies there, with the model folder, arguments and tolerance that the case's json states.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.types import ConditionInputs, Conditions

REPOSITORY = Path(__file__).parents[2]


@cache
def root() -> Path:
    """The golden folder: ``ACESTEP_GOLDEN`` if set, else the whole set beside the repository, else the copy in it."""
    if given := os.environ.get("ACESTEP_GOLDEN"):
        return Path(given)
    beside = REPOSITORY.parent / "shared" / "golden"
    return beside if beside.is_dir() else REPOSITORY / "tests" / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case. ``tensors`` of the file are split into ``inputs`` and ``outputs`` without their prefix."""

    name: str
    model: str | None
    args: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    atol: float
    rtol: float

    def check(self, name: str, actual: Tensor) -> None:
        """Compare with output ``name``: numbers within the case's tolerance, integers and booleans exactly."""
        expected = self.outputs[name]
        if expected.is_floating_point():
            atol, rtol = self.atol, self.rtol
            torch.testing.assert_close(
                actual, expected, atol=atol, rtol=rtol, msg=lambda text: f"{self.name} {name}: {text}"
            )
        else:
            assert torch.equal(actual.to(expected.dtype), expected), f"{self.name} {name}: must be equal"


def cases(kind: str) -> list[Any]:
    """Parameters for ``pytest.mark.parametrize``: the path of every case of ``kind``, the case's name as id.

    A case that lies in its model's own folder is of kind ``intermediates``.
    """
    paths = [path for path in sorted(root().rglob("*.json")) if path.with_suffix(".safetensors").exists()]
    paths = [path for path in paths if path.name not in ("config.json", "model.json") and _kind(path) == kind]
    return [pytest.param(path, id=path.relative_to(root()).with_suffix("").as_posix()) for path in paths]


def load_case(path: Path) -> Case:
    """Read one case."""
    description = json.loads(path.read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    return Case(
        name=path.relative_to(root()).with_suffix("").as_posix(),
        model=description["model"],
        args=description["args"],
        inputs={key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")},
        outputs={key.removeprefix("out."): value for key, value in tensors.items() if key.startswith("out.")},
        atol=description["tolerance"]["atol"],
        rtol=description["tolerance"]["rtol"],
    )


@cache
def load_model(folder: str) -> AceStep:
    """The network of a model folder, loaded strictly, in evaluation mode. Shared: leave it as it is."""
    config = AceStepConfig.from_dict(json.loads((root() / folder / "config.json").read_text()))
    network = AceStep(config).eval()
    network.load_state_dict(load_file(root() / folder / "model.safetensors"))
    return network


@cache
def load_autoencoder(folder: str) -> Oobleck:
    """The autoencoder of a model folder, loaded strictly, in evaluation mode."""
    config = OobleckConfig.from_dict(json.loads((root() / folder / "config.json").read_text()))
    autoencoder = Oobleck(config).eval()
    autoencoder.load_state_dict(load_file(root() / folder / "diffusion_pytorch_model.safetensors"))
    return autoencoder


def condition_inputs(inputs: dict[str, Tensor]) -> ConditionInputs:
    """The arguments of upstream's ``prepare_condition``, as a case stores them, as our value."""
    source = inputs["src_latents"]
    return ConditionInputs(
        text=inputs["text_hidden_states"],
        text_mask=inputs["text_attention_mask"].bool(),
        lyrics=inputs["lyric_hidden_states"],
        lyrics_mask=inputs["lyric_attention_mask"].bool(),
        references=inputs["refer_audio_acoustic_hidden_states_packed"],
        reference_index=inputs["refer_audio_order_mask"],
        source=source,
        chunk_mask=inputs["chunk_masks"].to(source.dtype),
        is_cover=inputs["is_covers"].bool(),
        frame_mask=torch.ones(source.shape[:2], dtype=torch.bool),
        hints=inputs.get("precomputed_lm_hints_25Hz"),
    )


def decoder_conditions(inputs: dict[str, Tensor]) -> Conditions:
    """The condition arguments of upstream's DiT, as a case stores them, as our value."""
    states, context = inputs["encoder_hidden_states"], inputs["context_latents"]
    mask = inputs.get("encoder_attention_mask", torch.ones(states.shape[:2])).bool()
    frame_mask = inputs.get("attention_mask", torch.ones(context.shape[:2])).bool()
    return Conditions(states=states, mask=mask, context=context, frame_mask=frame_mask)


@contextmanager
def activations(module: nn.Module) -> Iterator[dict[str, Any]]:
    """What every submodule returned last, by its name, while the context is open."""
    seen: dict[str, Any] = {}
    hooks = [
        child.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, child in module.named_modules()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def check_noise(actual: Tensor, expected: Tensor) -> None:
    """Seeded noise equals the recorded noise bit for bit.

    On processors without AVX2 torch draws normal numbers by another implementation (``normal_fill`` of ATen), whose
    results differ in the last bits.
    """
    vectorised = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
    torch.testing.assert_close(actual, expected, atol=0.0 if vectorised else 4e-6, rtol=0.0)


def _kind(path: Path) -> str:
    return "intermediates" if (path.parent / "config.json").exists() else path.parent.name
