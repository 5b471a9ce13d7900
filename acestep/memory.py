"""How a model fits the memory there is: which weights are quantised, and which parts wait outside until their turn.

A song goes through three stages: conditioning (text encoder, condition encoder, audio tokenizer), sampling (DiT) and
decoding (autoencoder). Offloading keeps on the device the stage at work. Counts hold for any model, built or on the
meta device; what activations take beside weights was fitted to measurements (``python -m acestep bench memory``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.adapters import Base, adapter_base, is_adapter
from acestep.adapters.base import BLOCK, SCALERS, fits_nf4
from acestep.audio.tiling import RESIDENT
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.modes import AUTO_ORDER, FIXED, Memory
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import find_folder, open_checkpoint

GIB = 2**30
RESERVE = 0.06
"""Share of a device that fragments and the driver take."""
CONTEXT_BYTES = int(0.5 * GIB)
"""What CUDA and its libraries hold beside tensors."""


PUBLISHED_PARAMETERS = {"text_encoder": 595_776_512, "autoencoder": 168_695_426}
"""Of Qwen3-Embedding-0.6B and the published autoencoder."""
CPU = torch.device("cpu")
DECODING = 9
"""Tensors as large as a window's widest that are alive at once while a song is decoded, at most; measured."""
ROW_BYTES = {"int8": 5, "fp8": 4}
"""What torchao stores with every row of 8-bit weights: a float32 scale, and for int8 a zero point."""
NF4_BYTES = 1 / 2 + 1 / BLOCK + 4 / (BLOCK * SCALERS)
"""Of a number in nf4: itself, its share of its block's scaler, and that one's of its own."""


@dataclass(frozen=True)
class Placement:
    """Where parts are while they work, and whether they leave afterwards."""

    device: torch.device = CPU
    offload: bool = False

    @contextmanager
    def __call__(self, *parts: object) -> Iterator[None]:
        """Inside, ``parts`` are on the device."""
        modules = [part for part in parts if isinstance(part, nn.Module)] if self.offload else []
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")


@dataclass(frozen=True)
class Stages:
    """Bytes of weights by stage, and of activations at most while each is at work."""

    weights: Mapping[str, int]
    activations: Mapping[str, int]

    def peak(self, offload: bool) -> int:
        """Bytes on the device at the worst moment."""
        if offload:
            return max(self.weights[stage] + self.activations[stage] for stage in self.weights)
        return sum(self.weights.values()) + max(self.activations.values())


@dataclass(frozen=True)
class Choice:
    """The mode that ``auto`` took, and why, in a sentence."""

    mode: Memory
    reason: str


def quantise(network: AceStep, kind: str) -> None:
    """Store the weights of ``network``'s linear layers in 8 bits (``int8`` or ``fp8``), in place, with torchao."""
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ValueError(f"memory={kind}: needs torchao; pip install torchao, or use memory=offload") from error
    config = Int8WeightOnlyConfig(set_inductor_config=False) if kind == "int8" else Float8WeightOnlyConfig()
    for part in (network.decoder, network.encoder):
        quantize_(part, config, filter_fn=lambda module, _: type(module) is nn.Linear)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are stored: of a quantised one its numbers and its scales."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor_bytes(tensor) for tensor in tensors.values())


def predicted_bytes(module: nn.Module, dtype: torch.dtype, quantised: str | None = None) -> int:
    """Bytes of ``module`` in ``dtype``, its linear weights in 8 or 4 bits where ``quantised`` names a type."""
    total = sum(tensor.numel() * dtype.itemsize for tensor in (*module.parameters(), *module.buffers()))
    if not quantised:
        return total
    weights = [part.weight for part in module.modules() if type(part) is nn.Linear]
    if quantised == Base.nf4.value:
        weights = [weight for weight in weights if fits_nf4(weight)]
        return total - int(sum(weight.numel() * (dtype.itemsize - NF4_BYTES) for weight in weights))
    return total - sum(weight.numel() * (dtype.itemsize - 1) - len(weight) * ROW_BYTES[quantised] for weight in weights)


def predict(
    config: AceStepConfig,
    others: Mapping[str, int],
    mode: Memory,
    seconds: float,
    dtype: torch.dtype,
    batch_size: int = 1,
) -> Stages:
    """What ``mode`` takes for songs of ``seconds``; ``others`` are bytes of ``text_encoder`` and ``autoencoder``."""
    with torch.device("meta"):
        network = AceStep(config)
    heads = sum(
        predicted_bytes(part, dtype, mode.quantised if part is network.encoder else None)
        for part in (network.encoder, network.tokenizer, network.detokenizer)
    )
    weights = {
        "conditioning": others["text_encoder"] + heads,
        "sampling": predicted_bytes(network.decoder, dtype, mode.quantised),
        "decoding": others["autoencoder"],
    }
    return Stages(weights, _activations(config, seconds, dtype, batch_size, mode.quantised is not None))


def choose(stages: Mapping[Memory, Stages], free: int, device: str) -> Choice:
    """The first mode of ``AUTO_ORDER`` whose peak fits into ``free`` bytes of ``device``."""
    usable = int(free * (1 - RESERVE)) - CONTEXT_BYTES
    needs = {mode: stages[mode].peak(mode.offloads) for mode in AUTO_ORDER}
    for mode in AUTO_ORDER:
        if needs[mode] <= usable:
            return Choice(mode, f"it needs about {_gib(needs[mode])}, and {device} has {_gib(free)} free")
    last = AUTO_ORDER[-1]
    return Choice(last, f"nothing smaller is known: about {_gib(needs[last])}, and {device} has {_gib(free)} free")


def pick(
    weights: str | Path, device: torch.device, dtype: torch.dtype, seconds: float | None, batch_size: int
) -> Choice:
    """What ``memory=auto`` is for the checkpoint ``weights``; ``seconds=None`` are its usual length."""
    if device.type != "cuda":
        return Choice(Memory.full, f"parts have nowhere to wait beside the memory of a {device.type}")
    checkpoint = open_base(weights)
    stages = stages_of(checkpoint, seconds or checkpoint.lengths.default_seconds, dtype, batch_size)
    free, _ = torch.cuda.mem_get_info(device)
    return choose(stages, free, str(device))


def open_base(weights: str | Path) -> Checkpoint:
    """The checkpoint that ``weights`` names; of an adapter, the one under it."""
    folder = find_folder(weights)
    while is_adapter(folder):
        folder = find_folder(adapter_base(folder))
    return open_checkpoint(folder)


def stages_of(checkpoint: Checkpoint, seconds: float, dtype: torch.dtype, batch_size: int = 1) -> dict[Memory, Stages]:
    """What every mode takes for songs of ``seconds`` by ``checkpoint``; no tensor is read."""
    config = AceStepConfig.from_dict(checkpoint.network_config)
    autoencoder = sum(tensor.numel() for tensor in (checkpoint.autoencoder or {}).values())
    text = sum(path.stat().st_size for path in (checkpoint.text_encoder or Path()).glob("*.safetensors"))
    others = {"text_encoder": text, "autoencoder": autoencoder * dtype.itemsize}
    return {mode: predict(config, others, mode, seconds, dtype, batch_size) for mode in FIXED}


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on a GPU; on a CPU, the most that this process has ever used."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # here, since Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _activations(
    config: AceStepConfig, seconds: float, dtype: torch.dtype, batch_size: int, quantised: bool
) -> dict[str, int]:
    """Bytes beside the weights, by stage: what one layer holds at once, for a batch doubled by guidance."""
    frames = int(seconds * 25)
    patches = -(-frames // config.patch_size)
    heads = config.num_attention_heads * config.head_dim
    widths = 6 * config.hidden_size + 8 * heads + 3 * config.intermediate_size
    layer = 2 * batch_size * patches * widths * dtype.itemsize
    # What a block of a sliding layer sees on a GPU: its own positions, a window of them, and a window on either side.
    # Blocks are shorter on a CPU and see less (``Band``), but nothing is chosen by this there.
    mask = 2 * batch_size * patches * 3 * config.sliding_window * dtype.itemsize if config.use_sliding_window else 0
    # A quantised layer's weight is made anew, whole, while it works.
    weight = config.hidden_size * config.intermediate_size * dtype.itemsize if quantised else 0
    # Windows and what they are made of, beside the largest weight of the published autoencoder and the audio twice.
    decode = DECODING * min(frames * 1920 * 128, RESIDENT) + 2048 * 1024 * 20
    audio = frames * 1920 * 2 * (dtype.itemsize + 4)
    return {
        "conditioning": 256 * 2**20,
        "sampling": layer + mask + weight,
        "decoding": decode * dtype.itemsize + audio,
    }


def stored_tensors(tensor: Any) -> Iterator[torch.Tensor]:
    """``tensor`` itself, or the plain tensors that a quantised one is made of."""
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (torch.Tensor, nn.Parameter):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from stored_tensors(getattr(tensor, name))
    else:
        yield tensor


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a tensor, or of the tensors that a quantised one is made of."""
    return sum(part.numel() * part.element_size() for part in stored_tensors(tensor))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
