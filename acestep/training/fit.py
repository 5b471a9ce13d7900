"""From a checkpoint to a trained one: what the training starts with, and where its result goes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from enum import Enum
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from acestep.adapters import Adapter, hold, save_adapter
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.passthrough import init_passthrough
from acestep.pipeline.pipeline import Pipeline
from acestep.training.callbacks.preemption import STOPPED, StopOnSignal, StoppedError
from acestep.training.datamodule import SongStream
from acestep.training.module import Trained, freeze
from acestep.training.seeding import derived_generator
from acestep.training.sharding import META, gather
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import open_checkpoint


class Start(Enum):
    """Where a network's weights come from.

    The checkpoint, or the run's seed: ``scratch`` by ``AceStep.init_weights``, ``passthrough`` by ``init_passthrough``.
    """

    pretrained = "pretrained"
    scratch = "scratch"
    passthrough = "passthrough"


def load_pipeline(weights: str, config: AceStepConfig, start: Start, seed: int) -> Pipeline:
    """The checkpoint ``weights`` with a network of ``config``: its own, or a new one beside its frozen parts."""
    checkpoint = open_checkpoint(weights)
    if start is not Start.pretrained:
        network, generator = AceStep(config), derived_generator(seed, "network")
        if start is Start.scratch:
            network.init_weights(generator)
        else:
            init_passthrough(network, generator)
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
        for part in (network.encoder, network.tokenizer, network.detokenizer):
            hold(part, adapter.base)
        adapter(network.decoder, derived_generator(seed, "adapter"))


def fit(trainer: Trainer, module: Trained, data: SongStream, checkpoint: Path | None, last: Path) -> bool:
    """Train to the end, from the start or from ``checkpoint``; a validation before, the checkpoint ``last`` after.

    Returns:
        Whether the end was reached; SIGTERM stops a run at a whole step, and the same call goes on there.
    """
    _check_precision(trainer, module)
    step = _step_of(checkpoint) if checkpoint else -1
    for logger in trainer.loggers:
        logger.rewind(step)
    stopped = last.with_name(STOPPED)
    trainer.callbacks.append(StopOnSignal(stopped))  # last, so that its checkpoint holds what others did in the step
    try:
        if checkpoint is None:
            trainer.validate(module, data, verbose=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        if checkpoint != last and step >= trainer.max_steps and _validates_at_the_end(trainer):
            trainer.validate(module, data, verbose=False)  # a kill came after the last step, and before its validation
    except (StoppedError, SIGTERMException):
        return False
    finally:
        for logger in trainer.loggers:
            if hasattr(logger, "close"):
                logger.close()
    trainer.save_checkpoint(last)
    if trainer.is_global_zero:
        trainer.strategy.remove_checkpoint(stopped)
    return True


def save_result(trainer: Trainer, pipeline: Pipeline, folder: Path, adapter: Adapter | None, weights: str) -> None:
    """Write the trained network to ``folder``: whole in the native layout, or as an adapter that names its base.

    All processes call it, for each may hold a part; the first writes.
    """
    gather(pipeline.network)
    if not trainer.is_global_zero:
        return
    if adapter is None:
        pipeline.save(folder)
    else:
        save_adapter(pipeline.network.decoder, folder, weights)


def _validates_at_the_end(trainer: Trainer) -> bool:
    return trainer.max_steps * trainer.accumulate_grad_batches % int(trainer.val_check_interval) == 0


def _step_of(checkpoint: Path) -> int:
    file = checkpoint / META if checkpoint.is_dir() else checkpoint
    step: int = torch.load(file, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    return step


def _check_precision(trainer: Trainer, module: Trained) -> None:
    held = {parameter.dtype for parameter in module.network.parameters() if not parameter.requires_grad}
    if torch.bfloat16 in held and trainer.precision == "32-true":
        raise ValueError("adapter.base=bfloat16: needs trainer.precision=bf16-mixed, so that both types meet")


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
