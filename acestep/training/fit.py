"""From a checkpoint to a trained one: what the training starts with, and where its result goes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn

from acestep.adapters import save_adapter
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.pipeline import Pipeline
from acestep.training.data import LatentData
from acestep.training.dit import DiTModule, freeze
from acestep.training.randomness import derived_generator
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import open_checkpoint

Adapter = Callable[[nn.Module, torch.Generator], None]


class Start(Enum):
    """Where a network's weights come from: ``pretrained`` from the checkpoint, ``scratch`` from the run's seed."""

    pretrained = "pretrained"
    scratch = "scratch"


def load_pipeline(weights: str, config: AceStepConfig, start: Start, seed: int) -> Pipeline:
    """The checkpoint ``weights`` with a network of ``config``: its own, or a new one beside its frozen parts."""
    checkpoint = open_checkpoint(weights)
    if start is Start.scratch:
        network = AceStep(config)
        network.init_weights(derived_generator(seed, "network"))
        checkpoint = replace(checkpoint, network=network.state_dict())
    else:
        _check_same_size(checkpoint, config)
    checkpoint = replace(checkpoint, network_config={**checkpoint.network_config, **config.to_dict()})
    pipeline = Pipeline.from_checkpoint(checkpoint)
    _check_parts_fit(pipeline, config)
    return pipeline


def select_trained(network: AceStep, trainable: str, adapter: Adapter | None, seed: int) -> None:
    """Freeze all of ``network`` but what ``trainable`` finds, or, with an ``adapter``, all but the adapter."""
    freeze(network, trainable)
    if adapter is not None:
        network.requires_grad_(False)
        adapter(network.decoder, derived_generator(seed, "adapter"))


def fit(trainer: Trainer, module: DiTModule, data: LatentData, checkpoint: Path | None, last: Path) -> None:
    """Train to the end, from the start or from ``checkpoint``; a validation before, the checkpoint ``last`` after."""
    step = -1
    if checkpoint:
        step = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["global_step"]
    for logger in trainer.loggers:
        logger.rewind(step)
    if checkpoint is None:
        trainer.validate(module, data, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint(last, weights_only=False)


def save_result(pipeline: Pipeline, folder: Path, adapter: Adapter | None, weights: str) -> None:
    """Write the trained network to ``folder``: whole in the native layout, or as an adapter that names its base."""
    if adapter is None:
        pipeline.save(folder)
    else:
        save_adapter(pipeline.network.decoder, folder, weights)


def _check_same_size(checkpoint: Checkpoint, config: AceStepConfig) -> None:
    there, here = AceStepConfig.from_dict(checkpoint.network_config).to_dict(), config.to_dict()
    for key in here.keys() - {"padding", "initializer_range"}:
        if there[key] != here[key]:
            raise ValueError(
                f"weights={checkpoint.name}: a checkpoint of another size, {key} is {there[key]}, but the config's is "
                f"model.{key}={here[key]}; choose the model that these weights are of, or network=scratch"
            )


def _check_parts_fit(pipeline: Pipeline, config: AceStepConfig) -> None:
    width, channels = pipeline.conditioner.text_encoder.width, pipeline.autoencoder.latent_channels
    for key, found, part in (
        ("text_hidden_dim", width, "text encoder's width"),
        ("audio_acoustic_hidden_dim", channels, "autoencoder's latent channels"),
    ):
        if getattr(config, key) != found:
            raise ValueError(f"model.{key}={getattr(config, key)}: need {found}, the {part} in these weights")
