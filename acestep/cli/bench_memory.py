"""``python -m acestep bench memory``: memory of each mode, predicted for a model or measured for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor, nn

from acestep.cli.song_writer import device_settings
from acestep.config.help import is_option_for
from acestep.config.run import CONFIGS, build, compose_config
from acestep.flow.schedule import Linear
from acestep.memory import GIB, PUBLISHED_PARAMETERS, estimate_memory, estimate_modes, peak_memory, stored_bytes
from acestep.memory_modes import MEMORY_MODES, MemoryMode
from acestep.models.acestep import AceStepConfig
from acestep.pipeline.build import named_dtype, open_weights
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.training.activation_checkpointing import Recompute
from acestep.training.memory_estimate import BatchShape, TrainingMemory
from acestep.training.tasks import DiTTask

WHOLE_SONG = 4500
"""Latent frames of three minutes, assumed if songs are not cropped."""
COLUMNS = ("weights", "adapter", "optimizer", "gradients", "activations", "others")

MEASURED_DEFAULTS = {"weights": "micro", "seconds": 60.0, "songs": 1, "steps": 4, "device": "auto", "dtype": "auto"}
PREDICTED_DEFAULTS = {"seconds": 60.0, "songs": 1, "dtype": "bfloat16"}


def memory_lines(options: Mapping[str, Any]) -> Iterator[str]:
    """The lines to print for ``options``, which has only those that the user gave.

    Raises:
        ValueError: an option has no effect together with the others, or there is no such config.
    """
    if "experiment" in options:
        _with_defaults(options, {"experiment": ""}, "--experiment, whose config defines the batch")
        return training_table(config_name("experiment", options["experiment"]))
    if "model" in options:
        values = _with_defaults(options, {"model": "", **PREDICTED_DEFAULTS}, "--model, which runs nothing")
        name = config_name("model", values["model"])
        model = build(compose_config("train", [f"model={name}"]).model)
        return predicted_table(model, name, values["seconds"], values["dtype"], values["songs"])
    values = {**MEASURED_DEFAULTS, **options}
    return memory_table(
        values["weights"], values["seconds"], values["device"], values["dtype"], values["steps"], values["songs"]
    )


def _with_defaults(options: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    for name in options:
        if name not in defaults:
            raise ValueError(f"{name}={options[name]}: has no effect with {where}; leave --{name} out")
    return {**defaults, **options}


def config_name(group: str, name: str) -> str:
    """``name``, if ``train.yaml`` has this option in ``group``. Raises ``ValueError`` if not."""
    paths = sorted((CONFIGS / group).glob("*.yaml"))
    known = [path.stem for path in paths if group != "experiment" or is_option_for(path, "train")]
    if name not in known:
        raise ValueError(f"{group}={name}: not in configs/{group}; use one of {', '.join(known)}")
    return name


@dataclass(frozen=True, kw_only=True)
class MemoryMeasurement:
    """Measurement of one mode in a process of its own.

    Attributes:
        weights: bytes of the network, the text encoder and the autoencoder as stored, on any device.
        peak: largest number of bytes: allocated by torch on a GPU, of the process on a CPU.
        load: seconds for loading the pipeline.
        song: seconds for generating the songs.
        latents: of the songs, in float32: [b, t, c].
    """

    weights: int
    peak: int
    load: float
    song: float
    latents: NDArray[np.float32]


def memory_table(
    weights: str, seconds: float, device: str = "auto", dtype: str = "auto", steps: int = 4, batch_size: int = 1
) -> Iterator[str]:
    """A line for every mode: predicted and measured peaks for ``batch_size`` songs of ``seconds`` by ``weights``.

    The last two columns are the difference of the latents from those of ``full``: the largest absolute one, and its
    norm relative to that of the latents.
    """
    settings = device_settings(device, dtype)
    opened = open_weights(weights)
    predicted = estimate_modes(opened.checkpoint, opened.config, seconds, named_dtype(settings["dtype"]), batch_size)
    size = f"{batch_size} x {seconds:g} s, {steps} steps"
    yield f"{weights}, {size}, {settings['device']} {settings['dtype']}; GiB, seconds"
    rest = f"{'load':>8}{'song':>8}{'largest':>10}{'relative':>10}"
    yield f"{'mode':<14}{'weights':>9}{'predicted':>11}{'measured':>10}{rest}"
    full: NDArray[np.float32] | None = None
    for mode in MEMORY_MODES:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            result = pool.submit(_measure_mode, weights, mode, seconds, settings, steps, batch_size).result()
        estimate = predicted[mode].peak(mode.offloads)
        numbers = f"{result.weights / GIB:>9.2f}{estimate / GIB:>11.2f}{result.peak / GIB:>10.2f}"
        full = result.latents if full is None else full
        difference = result.latents - full
        error = f"{np.abs(difference).max():>10.2g}{np.linalg.norm(difference) / np.linalg.norm(full):>10.2g}"
        yield f"{mode.value:<14}{numbers}{result.load:>8.1f}{result.song:>8.1f}{error}"


def predicted_table(
    config: AceStepConfig, name: str, seconds: float, dtype: str = "bfloat16", batch_size: int = 1
) -> Iterator[str]:
    """A line for every mode of a published model, without its weights."""
    kind = named_dtype(dtype)
    others = {part: count * kind.itemsize for part, count in PUBLISHED_PARAMETERS.items()}
    stages = {mode: estimate_memory(config, others, mode, seconds, kind, batch_size) for mode in MEMORY_MODES}
    yield f"{name}, {batch_size} x {seconds:g} s, {dtype}, predicted; GiB"
    yield f"{'mode':<14}" + "".join(f"{stage:>14}" for stage in (*stages[MemoryMode.full].weights, "peak"))
    for mode, stage in stages.items():
        columns = [stage.weights[part] + stage.activations[part] for part in stage.weights]
        yield f"{mode.value:<14}" + "".join(f"{size / GIB:>14.2f}" for size in (*columns, stage.peak(mode.offloads)))


def training_memory(cfg: DictConfig) -> TrainingMemory:
    """The settings of a composed ``train.yaml`` that its memory depends on."""
    if not isinstance(build(cfg.task), DiTTask):
        raise ValueError(
            f"experiment={cfg.name}: memory is predicted for trainings of the DiT only; use one with task=dit"
        )
    return TrainingMemory(
        model=build(cfg.model),
        trainable=cfg.trainable,
        adapter=build(cfg.adapter) or None,
        optimizer=build(cfg.optimizer),
        trainer=build(cfg.trainer),
        batch=BatchShape(songs=cfg.data.batch_size, frames=cfg.data.crop_frames or WHOLE_SONG),
        average=bool(cfg.callbacks.ema),
    )


def training_table(experiment: str) -> Iterator[str]:
    """A line for each mode of activation checkpointing, the experiment's with a star: predicted memory of a device."""
    settings = training_memory(compose_config("train", [f"experiment={experiment}", "weights=W", "data.path=D"]))
    batch, devices = settings.batch, f"{settings.shards} devices that share" if settings.shards > 1 else "each device"
    precision = settings.trainer.precision
    yield f"{experiment}, {batch.songs} x {batch.frames} frames, {precision}, {devices}, predicted; GiB"
    yield f"{'recompute':<14}" + "".join(f"{name:>12}" for name in (*COLUMNS, "total", "card"))
    for what in Recompute:
        plan = replace(settings, trainer=replace(settings.trainer, recompute=what)).plan()
        name = what.value + (" *" if what is settings.trainer.recompute else "")
        sizes = "".join(f"{getattr(plan, column) / GIB:>12.2f}" for column in (*COLUMNS, "total"))
        yield f"{name:<14}{sizes}{plan.card or 'none':>12}"


def _measure_mode(
    weights: str, mode: MemoryMode, seconds: float, settings: dict[str, str], steps: int, batch_size: int
) -> MemoryMeasurement:
    device = torch.device(settings["device"])
    started = perf_counter()
    pipeline = Pipeline.from_pretrained(weights, settings["device"], settings["dtype"], memory=mode)
    parts = (pipeline.network, pipeline.autoencoder, pipeline.conditioner.text_encoder)
    load, stored = perf_counter() - started, sum(stored_bytes(part) for part in parts if isinstance(part, nn.Module))
    sampler = replace(pipeline.sampler, schedule=Linear(steps=steps))
    started = perf_counter()
    songs = [Song(caption="a song", seconds=seconds, seed=seed) for seed in range(batch_size)]
    latents: list[Tensor] = []
    for _ in pipeline.generate(songs, sampler, batch_size, on_latents=lambda _, values: latents.append(values)):
        pass
    song, peak = perf_counter() - started, peak_memory(device)
    stacked = torch.stack(latents).float().cpu().numpy()
    return MemoryMeasurement(weights=stored, peak=peak, load=load, song=song, latents=stacked)
