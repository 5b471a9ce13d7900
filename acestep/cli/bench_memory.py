"""What each way of fitting a model into memory takes: predicted for any model, measured for a checkpoint at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from acestep.cli.song_writer import machine
from acestep.config.compose import composed
from acestep.config.help import is_for
from acestep.config.run import CONFIGS, build
from acestep.flow.schedule import Linear
from acestep.memory import GIB, PUBLISHED_PARAMETERS, Stages, peak_memory, predict, stages_of, stored_bytes
from acestep.models.acestep import AceStepConfig
from acestep.modes import FIXED, Memory
from acestep.pipeline.build import named_dtype
from acestep.pipeline.pipeline import Pipeline
from acestep.training.activation_checkpointing import Recompute
from acestep.training.memory_estimate import Batch, Training
from acestep.training.tasks import DiTTask
from acestep.types import Song
from acestep.weights.open import open_checkpoint

WHOLE_SONG = 4500
"""Latent frames of three minutes, where songs are not cropped."""
COLUMNS = ("weights", "adapter", "optimizer", "gradients", "activations", "others")


MEASURING = {"weights": "micro", "seconds": 60.0, "songs": 1, "steps": 4, "device": "auto", "dtype": "auto"}
PREDICTING = {"seconds": 60.0, "songs": 1, "dtype": "bfloat16"}
"""What ``bench memory`` can be told of measuring and of predicting, and what holds where it is not."""


def memory_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """What ``bench memory`` prints that was ``told`` these options, and no others, by a person.

    Raises:
        ValueError: if one of them decides nothing there, or names no config.
    """
    if "experiment" in told:
        _all_decide(told, {"experiment": ""}, "--experiment, whose config says what a batch is")
        return training_table(config_name("experiment", told["experiment"]))
    if "model" in told:
        asked = _all_decide(told, {"model": "", **PREDICTING}, "--model, which runs nothing")
        name = config_name("model", asked["model"])
        model = build(composed("train", [f"model={name}"]).model)
        return predicted_table(model, name, asked["seconds"], asked["dtype"], asked["songs"])
    asked = {**MEASURING, **told}
    return memory_table(
        asked["weights"], asked["seconds"], asked["device"], asked["dtype"], asked["steps"], asked["songs"]
    )


def _all_decide(told: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``known`` with what was ``told``, all of which has to be known."""
    for name in told:
        if name not in known:
            raise ValueError(f"{name}={told[name]}: decides nothing with {where}; leave --{name} out")
    return {**known, **told}


def config_name(group: str, name: str) -> str:
    """``name``, if ``train.yaml`` has such an option in ``group``. Raises ``ValueError`` if not."""
    paths = sorted((CONFIGS / group).glob("*.yaml"))
    known = [path.stem for path in paths if group != "experiment" or is_for(path, "train")]
    if name not in known:
        raise ValueError(f"{group}={name}: not in configs/{group}; use one of {', '.join(known)}")
    return name


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One mode, measured in a process of its own.

    Attributes:
        weights: bytes of the network, the text encoder and the autoencoder as stored, wherever they are.
        peak: bytes at most: what torch held on a GPU, what the process used on a CPU.
        load: seconds until a song can be made.
        song: seconds that it took.
        latents: what was made, in float32: [b, t, c].
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

    The last two columns are the error: how far its latents are from those of ``full`` at most, and the root mean square
    of that over theirs.
    """
    where = machine(device, dtype)
    predicted = stages_of(open_checkpoint(weights), seconds, named_dtype(where["dtype"]), batch_size)
    yield f"{weights}, {batch_size} x {seconds:g} s, {steps} steps, {where['device']} {where['dtype']}; GiB, seconds"
    rest = f"{'load':>8}{'song':>8}{'largest':>10}{'relative':>10}"
    yield f"{'mode':<14}{'weights':>9}{'predicted':>11}{'measured':>10}{rest}"
    full: NDArray[np.float32] | None = None
    for mode in FIXED:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(_measure, weights, mode, seconds, where, steps, batch_size).result()
        foreseen = predicted[mode].peak(mode.offloads)
        numbers = f"{found.weights / GIB:>9.2f}{foreseen / GIB:>11.2f}{found.peak / GIB:>10.2f}"
        full = found.latents if full is None else full
        apart = found.latents - full
        error = f"{np.abs(apart).max():>10.2g}{np.linalg.norm(apart) / np.linalg.norm(full):>10.2g}"
        yield f"{mode.value:<14}{numbers}{found.load:>8.1f}{found.song:>8.1f}{error}"


def predicted_table(
    config: AceStepConfig, name: str, seconds: float, dtype: str = "bfloat16", batch_size: int = 1
) -> Iterator[str]:
    """A line for every mode of a published model, without its weights."""
    kind = named_dtype(dtype)
    others = {part: count * kind.itemsize for part, count in PUBLISHED_PARAMETERS.items()}
    stages = {mode: predict(config, others, mode, seconds, kind, batch_size) for mode in FIXED}
    yield f"{name}, {batch_size} x {seconds:g} s, {dtype}, predicted; GiB"
    yield f"{'mode':<14}" + "".join(f"{stage:>14}" for stage in (*_first(stages).weights, "peak"))
    for mode, stage in stages.items():
        columns = [stage.weights[part] + stage.activations[part] for part in stage.weights]
        yield f"{mode.value:<14}" + "".join(f"{size / GIB:>14.2f}" for size in (*columns, stage.peak(mode.offloads)))


def planned(cfg: DictConfig) -> Training:
    """What of a composed ``train.yaml`` decides its memory."""
    if not isinstance(build(cfg.task), DiTTask):
        raise ValueError(f"experiment={cfg.name}: only the DiT's trainings are planned; use one with task=dit")
    return Training(
        model=build(cfg.model),
        trainable=cfg.trainable,
        adapter=build(cfg.adapter) or None,
        optimizer=build(cfg.optimizer),
        trainer=build(cfg.trainer),
        batch=Batch(songs=cfg.data.batch_size, frames=cfg.data.crop_frames or WHOLE_SONG),
        average=bool(cfg.callbacks.ema),
    )


def training_table(experiment: str) -> Iterator[str]:
    """A line for each way of recomputing in ``experiment``, its own marked: what each device holds, predicted."""
    wanted = planned(composed("train", [f"experiment={experiment}", "weights=W", "data.path=D"]))
    batch, devices = wanted.batch, f"{wanted.shards} devices that share" if wanted.shards > 1 else "each device"
    precision = wanted.trainer.precision
    yield f"{experiment}, {batch.songs} x {batch.frames} frames, {precision}, {devices}, predicted; GiB"
    yield f"{'recompute':<14}" + "".join(f"{name:>12}" for name in (*COLUMNS, "total", "card"))
    for what in Recompute:
        plan = replace(wanted, trainer=replace(wanted.trainer, recompute=what)).plan()
        name = what.value + (" *" if what is wanted.trainer.recompute else "")
        sizes = "".join(f"{getattr(plan, column) / GIB:>12.2f}" for column in (*COLUMNS, "total"))
        yield f"{name:<14}{sizes}{plan.card or 'none':>12}"


def _first(stages: dict[Memory, Stages]) -> Stages:
    return next(iter(stages.values()))


def _measure(
    weights: str, mode: Memory, seconds: float, where: dict[str, str], steps: int, batch_size: int
) -> Measured:
    device = torch.device(where["device"])
    started = perf_counter()
    pipeline = Pipeline.from_pretrained(weights, where["device"], where["dtype"], memory=mode)
    parts = (pipeline.network, pipeline.autoencoder, pipeline.conditioner.text_encoder)
    load, stored = perf_counter() - started, sum(stored_bytes(part) for part in parts)
    sampler = replace(pipeline.sampler, schedule=Linear(steps=steps))
    started = perf_counter()
    songs: Sequence[Song] = [Song(caption="a song", seconds=seconds, seed=seed) for seed in range(batch_size)]
    made: list[Tensor] = []
    for _ in pipeline.generate(songs, sampler, batch_size, on_latents=lambda _, latents: made.append(latents)):
        pass
    song, peak = perf_counter() - started, peak_memory(device)
    return Measured(weights=stored, peak=peak, load=load, song=song, latents=torch.stack(made).float().cpu().numpy())
