"""From a checkpoint to a network that is ready to train, and the training loop."""

from __future__ import annotations

import warnings
from dataclasses import replace
from enum import Enum
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from acestep.adapters import Adapter, quantize_base
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.passthrough import init_passthrough
from acestep.pipeline.build import OpenedWeights
from acestep.pipeline.pipeline import Pipeline
from acestep.training.callbacks.preemption import STOPPED, StopOnSignal, StoppedError
from acestep.training.checkpoint import saved_step
from acestep.training.datamodule import ResumableDataModule
from acestep.training.loggers import ResumableLogger
from acestep.training.module import TrainingModule, derived_generator, freeze
from acestep.weights.checkpoint import Checkpoint
from acestep.weights.open import open_checkpoint


class NetworkInit(Enum):
    """Where a network's weights come from: the checkpoint, or random weights drawn with the run's seed.

    ``scratch`` uses ``AceStep.init_weights``, ``passthrough`` uses ``init_passthrough``.
    """

    pretrained = "pretrained"
    scratch = "scratch"
    passthrough = "passthrough"


def load_pipeline(weights: str, config: AceStepConfig, init: NetworkInit, seed: int) -> Pipeline:
    """The checkpoint's network, or a new network of ``config`` with the checkpoint's other parts.

    Raises:
        ValueError: the network's sizes are not those of the checkpoint's network or frozen parts.
    """
    checkpoint = open_checkpoint(weights)
    if init is NetworkInit.pretrained:
        _check_same_size(checkpoint, config)
    else:
        network, generator = AceStep(config), derived_generator(seed, "network")
        if init is NetworkInit.scratch:
            network.init_weights(generator)
        else:
            init_passthrough(network, generator)
        checkpoint = replace(checkpoint, network=network.state_dict())
    checkpoint = replace(checkpoint, network_config={**checkpoint.network_config, **config.to_dict()})
    pipeline = Pipeline.from_pretrained(OpenedWeights(checkpoint))
    _check_parts_fit(pipeline, config)
    return pipeline


def set_trainable(network: AceStep, trainable: str, adapter: Adapter | None, seed: int) -> None:
    """Freeze what the regular expression ``trainable`` does not match; with ``adapter``, train that alone."""
    freeze(network, trainable)
    if adapter is not None:
        network.requires_grad_(False)
        for part in (network.encoder, network.tokenizer, network.detokenizer):
            quantize_base(part, adapter.base)
        adapter(network.decoder, derived_generator(seed, "adapter"))


def fit(
    trainer: Trainer, module: TrainingModule, data: ResumableDataModule, checkpoint: Path | None, last: Path
) -> bool:
    """Train to the last step, from the start or from ``checkpoint``; writes the checkpoint ``last`` at the end.

    A new run is validated before its first step.

    Returns:
        Whether the last step was reached: SIGTERM and SIGINT stop a run between steps, and the same call resumes it.
    """
    _check_precision(trainer, module)
    step = saved_step(checkpoint) if checkpoint else -1
    loggers = [logger for logger in trainer.loggers if isinstance(logger, ResumableLogger)]
    for logger in loggers:
        logger.rewind(step)
    stopped = last.with_name(STOPPED)
    # After all other callbacks, so that its checkpoint has the state that they reach in the step.
    trainer.callbacks.append(StopOnSignal(stopped))  # type: ignore[attr-defined]  # set by Lightning's connector
    try:
        if checkpoint is None:
            trainer.validate(module, data, verbose=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
            trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        validates_at_end = trainer.max_steps * trainer.accumulate_grad_batches % int(trainer.val_check_interval) == 0
        if checkpoint != last and step >= trainer.max_steps and validates_at_end:
            trainer.validate(module, data, verbose=False)  # the run was killed between its last step and validation
    except (StoppedError, SIGTERMException):
        return False
    finally:
        for logger in loggers:
            logger.close()
    trainer.save_checkpoint(last)
    if trainer.is_global_zero:
        trainer.strategy.remove_checkpoint(stopped)
    return True


def _check_precision(trainer: Trainer, module: TrainingModule) -> None:
    frozen = {parameter.dtype for parameter in module.network.parameters() if not parameter.requires_grad}
    if torch.bfloat16 in frozen and trainer.precision == "32-true":
        raise ValueError("adapter.base=bfloat16: needs trainer.precision=bf16-mixed, so that both types meet")


def _check_same_size(checkpoint: Checkpoint, config: AceStepConfig) -> None:
    saved, given = AceStepConfig.from_dict(checkpoint.network_config).to_dict(), config.to_dict()
    for key in given.keys() - {"padding", "initializer_range"}:
        if saved[key] != given[key]:
            raise ValueError(
                f"weights={checkpoint.name}: a checkpoint of another size, {key} is {saved[key]}, but the config's is "
                f"model.{key}={given[key]}; choose the model that these weights are of, or network=scratch"
            )


def _check_parts_fit(pipeline: Pipeline, config: AceStepConfig) -> None:
    width, channels = pipeline.conditioner.text_encoder.width, pipeline.autoencoder.latent_channels
    for key, size, part in (
        ("text_hidden_dim", width, "text encoder's width"),
        ("audio_acoustic_hidden_dim", channels, "autoencoder's latent channels"),
    ):
        if getattr(config, key) != size:
            raise ValueError(f"model.{key}={getattr(config, key)}: need {size}, the {part} in these weights")
