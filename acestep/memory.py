"""Fitting a model into memory: quantized weights, offloading, and the prediction of what each memory mode needs.

A song goes through three stages: conditioning (text encoder, condition encoder, audio tokenizer), sampling (DiT) and
decoding (autoencoder). Offloading keeps only the current stage on the device. Weights are counted for any model, built
or on the meta device; activations were fitted to measurements (``python -m acestep bench memory``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acestep.adapters import BaseFormat
from acestep.audio.tiling import GPU_WINDOW_ELEMENTS
from acestep.memory_modes import AUTO_MODES, MEMORY_MODES, MemoryMode
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.quantization import NF4_BLOCK, NF4_SCALERS, fits_nf4, quantize_linears
from acestep.weights.checkpoint import Checkpoint

GIB = 2**30
RESERVE = 0.06
"""Fraction of a device for fragmentation and the driver."""
CONTEXT_BYTES = int(0.5 * GIB)
"""Memory of CUDA and its libraries besides tensors."""
PUBLISHED_PARAMETERS = {"text_encoder": 595_776_512, "autoencoder": 168_695_426}
"""Of Qwen3-Embedding-0.6B and the published autoencoder."""
CPU = torch.device("cpu")
DECODING = 9
"""Peak memory of decoding, in units of a tile's largest tensor; measured."""
ROW_BYTES = {"int8": 5, "fp8": 4}
"""Bytes that torchao stores per row of 8-bit weights: a float32 scale, and for int8 a zero point."""
NF4_BYTES = 1 / 2 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * NF4_SCALERS)
"""Per value in nf4: 4 bits, its share of its block's 8-bit scaler, and of the scalers' float32 scale."""


@dataclass(frozen=True)
class Placement:
    """Device of the parts while they run; with ``offload`` they return to the CPU afterwards."""

    device: torch.device = CPU
    offload: bool = False

    @contextmanager
    def __call__(self, *parts: object) -> Iterator[None]:
        """Inside the context, those of ``parts`` that are modules are on the device."""
        modules = [part for part in parts if isinstance(part, nn.Module)] if self.offload else []
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of weights, and of activations at their peak, by stage."""

    weights: Mapping[str, int]
    activations: Mapping[str, int]

    def peak(self, offload: bool) -> int:
        """Peak bytes on the device."""
        if offload:
            return max(self.weights[stage] + self.activations[stage] for stage in self.weights)
        return sum(self.weights.values()) + max(self.activations.values())


@dataclass(frozen=True)
class MemoryChoice:
    """The mode that ``auto`` selected, and the reason as text."""

    mode: MemoryMode
    reason: str


def quantize_network(network: AceStep, kind: str) -> None:
    """Store the linear layers of DiT and condition encoder in 8 bits (``int8`` or ``fp8``), in place."""
    for part in (network.decoder, network.encoder):
        quantize_linears(part, kind)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers as stored: of a quantized tensor its values and scales."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor_bytes(tensor) for tensor in tensors.values())


def predicted_bytes(module: nn.Module, dtype: torch.dtype, quantized: str | None = None) -> int:
    """Bytes of ``module`` in ``dtype``, its linear weights as ``quantized`` (``int8``, ``fp8``, ``nf4``) if given."""
    total = sum(tensor.numel() * dtype.itemsize for tensor in (*module.parameters(), *module.buffers()))
    if not quantized:
        return total
    weights = [part.weight for part in module.modules() if type(part) is nn.Linear]
    if quantized == BaseFormat.nf4.value:
        weights = [weight for weight in weights if fits_nf4(weight)]
        return total - int(sum(weight.numel() * (dtype.itemsize - NF4_BYTES) for weight in weights))
    return total - sum(weight.numel() * (dtype.itemsize - 1) - len(weight) * ROW_BYTES[quantized] for weight in weights)


def estimate_memory(
    config: AceStepConfig,
    others: Mapping[str, int],
    mode: MemoryMode,
    seconds: float,
    dtype: torch.dtype,
    batch_size: int = 1,
) -> MemoryEstimate:
    """Memory of ``mode`` for songs of ``seconds``; ``others`` are bytes of ``text_encoder`` and ``autoencoder``."""
    with torch.device("meta"):
        network = AceStep(config)
    conditioning = sum(
        predicted_bytes(part, dtype, mode.quantized if part is network.encoder else None)
        for part in (network.encoder, network.tokenizer, network.detokenizer)
    )
    weights = {
        "conditioning": others["text_encoder"] + conditioning,
        "sampling": predicted_bytes(network.decoder, dtype, mode.quantized),
        "decoding": others["autoencoder"],
    }
    return MemoryEstimate(weights, _activations(config, seconds, dtype, batch_size, mode.quantized is not None))


def first_fitting(estimates: Mapping[MemoryMode, MemoryEstimate], free: int, device: str) -> MemoryChoice:
    """The first mode of ``AUTO_MODES`` whose peak fits into ``free`` bytes of ``device``."""
    usable = int(free * (1 - RESERVE)) - CONTEXT_BYTES
    needs = {mode: estimates[mode].peak(mode.offloads) for mode in AUTO_MODES}
    for mode in AUTO_MODES:
        if needs[mode] <= usable:
            return MemoryChoice(mode, f"it needs about {_gib(needs[mode])}, and {device} has {_gib(free)} free")
    last = AUTO_MODES[-1]
    return MemoryChoice(
        last, f"nothing smaller is known: about {_gib(needs[last])}, and {device} has {_gib(free)} free"
    )


def choose_mode(
    checkpoint: Checkpoint,
    config: AceStepConfig,
    device: torch.device,
    dtype: torch.dtype,
    seconds: float | None,
    batch_size: int,
) -> MemoryChoice:
    """The mode of ``memory=auto`` for ``checkpoint``; ``seconds=None`` is its default duration."""
    if device.type != "cuda":
        return MemoryChoice(MemoryMode.full, f"on {device.type} there is no other memory to offload to")
    stages = estimate_modes(checkpoint, config, seconds or checkpoint.lengths.default_seconds, dtype, batch_size)
    free, _ = torch.cuda.mem_get_info(device)
    return first_fitting(stages, free, str(device))


def estimate_modes(
    checkpoint: Checkpoint, config: AceStepConfig, seconds: float, dtype: torch.dtype, batch_size: int = 1
) -> dict[MemoryMode, MemoryEstimate]:
    """The memory of every mode for songs of ``seconds``; ``config`` is the network's. Reads no tensor."""
    autoencoder = sum(tensor.numel() for tensor in (checkpoint.autoencoder or {}).values())
    text = sum(path.stat().st_size for path in (checkpoint.text_encoder or Path()).glob("*.safetensors"))
    others = {"text_encoder": text, "autoencoder": autoencoder * dtype.itemsize}
    return {mode: estimate_memory(config, others, mode, seconds, dtype, batch_size) for mode in MEMORY_MODES}


def peak_memory(device: torch.device) -> int:
    """Bytes: the peak allocation of torch on a GPU; on a CPU, the peak resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not available on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _activations(
    config: AceStepConfig, seconds: float, dtype: torch.dtype, batch_size: int, quantized: bool
) -> dict[str, int]:
    """Bytes besides the weights, by stage: of one layer, for a batch doubled by guidance."""
    frames = int(seconds * 25)
    patches = -(-frames // config.patch_size)
    heads = config.num_attention_heads * config.head_dim
    widths = 6 * config.hidden_size + 8 * heads + 3 * config.intermediate_size
    layer = 2 * batch_size * patches * widths * dtype.itemsize
    # Keys of a block of a sliding layer on a GPU: its own positions, one window, and a window on either side. Blocks
    # are shorter on a CPU (``BandMask``), but memory=auto does not use the estimate there.
    mask = 2 * batch_size * patches * 3 * config.sliding_window * dtype.itemsize if config.use_sliding_window else 0
    # The weight of a quantized layer is dequantized as a whole while it runs.
    weight = config.hidden_size * config.intermediate_size * dtype.itemsize if quantized else 0
    # Tiles with their intermediate tensors, the largest weight of the published autoencoder, and the audio twice.
    decode = DECODING * min(frames * 1920 * 128, GPU_WINDOW_ELEMENTS) + 2048 * 1024 * 20
    audio = frames * 1920 * 2 * (dtype.itemsize + 4)
    return {"conditioning": 256 * 2**20, "sampling": layer + mask + weight, "decoding": decode * dtype.itemsize + audio}


def stored_tensors(tensor: Any) -> Iterator[torch.Tensor]:
    """``tensor`` itself, or the plain tensors inside a quantized one."""
    if hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (torch.Tensor, nn.Parameter):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from stored_tensors(getattr(tensor, name))
    else:
        yield tensor


def tensor_bytes(tensor: Any) -> int:
    """Bytes of a tensor, or of the plain tensors inside a quantized one."""
    return sum(part.numel() * part.element_size() for part in stored_tensors(tensor))


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
