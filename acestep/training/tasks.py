"""Training tasks: each builds a module, its data and an export function from the settings that all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from acestep.adapters import Adapter
from acestep.conditioning.upstream import TrainerConditioner
from acestep.data import autoencoder_settings
from acestep.flow.objective import FlowMatching
from acestep.memory_modes import MemoryMode
from acestep.models.acestep import AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.models.discriminators import Discriminator, DiscriminatorConfig
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.init import PretrainedInit, ScratchInit
from acestep.planner.model import LanguageModel
from acestep.planner.plan import EXAMPLE_MIX_KEY
from acestep.training.audio_datamodule import AudioConfig, AudioDataModule
from acestep.training.autoencoder import AutoencoderModule, ReconstructionLoss
from acestep.training.checkpoint import export_trained
from acestep.training.datamodule import DataConfig, LatentDataModule, ResumableDataModule
from acestep.training.dit import DiTModule
from acestep.training.fit import NetworkInit, load_pipeline, set_trainable
from acestep.training.module import Optimization, TrainingModule, derived_generator, freeze
from acestep.training.planner import AudioCodeCache, ExampleMix, PlannerDataModule, PlannerModule, PreviewPipeline
from acestep.training.tokenizer import TokenizerModule
from acestep.training.trainer import TrainerConfig
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint
from acestep.weights.tensors import load_into


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Settings that all tasks share: the values of ``train.yaml``, built."""

    weights: str
    start: NetworkInit
    model: AceStepConfig
    trainable: str
    adapter: Adapter | None
    objective: FlowMatching
    data: Any
    optimization: Optimization
    trainer: TrainerConfig
    seed: int


@dataclass(frozen=True)
class TrainJob:
    """A training, ready to run. ``save`` exports the result to a folder; all processes call it."""

    module: TrainingModule
    data: ResumableDataModule
    save: Callable[[Trainer, Path], None]


LanguageInit = PretrainedInit | ScratchInit
"""Initialisation of a language model for training."""


class Conditioning(Enum):
    """Conditioning in training: as for generation, or as in upstream's trainer (``TrainerConditioner``)."""

    generation = "generation"
    upstream_v1_5_trainer = "upstream_v1_5_trainer"


@dataclass(frozen=True, kw_only=True)
class DiTTask:
    """Trains the DiT, on latents.

    Args:
        conditioning: of training; validation and samples are conditioned as for generation.
    """

    conditioning: Conditioning = Conditioning.generation

    def __call__(self, spec: TrainSpec) -> TrainJob:
        pipeline, data = _pipeline_and_latents(spec, spec.adapter)
        spec.trainer.prepare(pipeline.network.decoder.layers)
        conditioner = pipeline.conditioner
        if Conditioning(self.conditioning) is Conditioning.upstream_v1_5_trainer:
            conditioner = TrainerConditioner.like(conditioner)
        module = DiTModule(pipeline, spec.objective, spec.optimization, spec.seed, conditioner=conditioner)
        return TrainJob(module, data, _export_pipeline(pipeline, spec))


@dataclass(frozen=True, kw_only=True)
class TokenizerTask:
    """Trains the audio tokenizer and detokenizer, or the one that ``trainable`` matches, on latents."""

    def __call__(self, spec: TrainSpec) -> TrainJob:
        _check_no_adapter(spec, "tokenizer")
        pipeline, data = _pipeline_and_latents(spec, None)
        return TrainJob(TokenizerModule(pipeline, spec.optimization, spec.seed), data, _export_pipeline(pipeline, spec))


def _pipeline_and_latents(spec: TrainSpec, adapter: Adapter | None) -> tuple[Pipeline, LatentDataModule]:
    _check_data(spec, DataConfig, "latents")
    pipeline = load_pipeline(spec.weights, spec.model, spec.start, spec.seed)
    set_trainable(pipeline.network, spec.trainable, adapter, spec.seed)
    data = LatentDataModule(spec.data, spec.seed)
    data.store.check(autoencoder_settings(pipeline.autoencoder))
    return pipeline, data


def _export_pipeline(pipeline: Pipeline, spec: TrainSpec) -> Callable[[Trainer, Path], None]:
    base = spec.weights if spec.adapter else None
    return partial(export_trained, model=pipeline, adapted=pipeline.network.decoder, base=base)


@dataclass(frozen=True, kw_only=True)
class PlannerTask:
    """Trains the 5 Hz language model, on a store's texts and the codes of its latents by ``weights``' tokenizer.

    Args:
        language: its initialisation.
        example_mix: probabilities of the kinds of examples.
        validation_plans: held-out songs of each batch that are planned at validation.
    """

    language: LanguageInit
    example_mix: ExampleMix = field(default_factory=ExampleMix)
    validation_plans: int = 8

    def __call__(self, spec: TrainSpec) -> TrainJob:
        if not callable(self.language):
            raise ValueError("language=none: a planner needs an initialisation; use language=pretrained")
        _check_data(spec, DataConfig, "latents")
        pipeline = load_pipeline(spec.weights, spec.model, NetworkInit.pretrained, spec.seed)
        data = PlannerDataModule(spec.data, spec.seed)
        data.store.check(autoencoder_settings(pipeline.autoencoder))
        codes = AudioCodeCache(data.store, pipeline.network, pipeline.conditioner.silence)
        size = pipeline.network.tokenizer.quantizer.codebook_size
        model = self.language(data.texts(), size, derived_generator(spec.seed, "language"))
        if model.vocabulary.codes != size:
            raise ValueError(
                f"language: the language model has tokens for {model.vocabulary.codes} codes, and the tokenizer of "
                f"weights={spec.weights} has {size}; start from another"
            )
        data.set_examples(codes, model.vocabulary, self.example_mix)
        # Names in config.json, which published adapters and weights have.
        mix = {"improvise": self.example_mix.unconditional, "listen": self.example_mix.captioning}
        setattr(model.network.config, EXAMPLE_MIX_KEY, mix)
        base = self._set_trainable(model, spec)
        preview = PreviewPipeline(partial(_open_for_preview, spec.weights), pipeline.lengths)
        module = PlannerModule(model, spec.optimization, spec.seed, preview, self.validation_plans)
        return TrainJob(module, data, partial(export_trained, model=model, adapted=model.network, base=base))

    def _set_trainable(self, model: LanguageModel, spec: TrainSpec) -> str | None:
        """Freeze what does not train; returns the folder of the weights below an adapter, if there is one."""
        if spec.adapter is None:
            freeze(model.network, spec.trainable)
            return None
        if not isinstance(self.language, PretrainedInit):
            raise ValueError("adapter: an adapter needs pretrained weights below it; use language=pretrained")
        model.network.requires_grad_(False)
        spec.adapter(model.network, derived_generator(spec.seed, "adapter"))
        return self.language.path


@dataclass(frozen=True, kw_only=True)
class AutoencoderTask:
    """Trains an Oobleck autoencoder, or its decoder if ``trainable`` matches that alone, on audio.

    Args:
        oobleck: sizes of a new one for ``network=scratch``, as fields of ``OobleckConfig``; default: those of the
            autoencoder in ``weights``.
        discriminator: sizes of the discriminator.
        loss: weights of the loss terms.
    """

    oobleck: Mapping[str, Any] | None = None
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: ReconstructionLoss = field(default_factory=ReconstructionLoss)

    def __call__(self, spec: TrainSpec) -> TrainJob:
        _check_no_adapter(spec, "autoencoder")
        _check_data(spec, AudioConfig, "audio")
        if spec.trainer.accumulate > 1:
            raise ValueError(
                f"trainer.accumulate={spec.trainer.accumulate}: task=autoencoder steps after every batch; use 1, and "
                "a larger data.batch_size"
            )
        if spec.trainer.gradient_clip is not None:
            raise ValueError(
                f"trainer.gradient_clip={spec.trainer.gradient_clip:g}: task=autoencoder clips both its networks "
                "itself; use null, and task.loss.gradient_clip"
            )
        checkpoint = open_checkpoint(spec.weights)
        pretrained = checkpoint.autoencoder if checkpoint.autoencoder_class == "oobleck" else None
        if pretrained is None and (self.oobleck is None or spec.start is NetworkInit.pretrained):
            raise ValueError(
                f"weights={spec.weights}: has no Oobleck autoencoder to train (its class is "
                f"{checkpoint.autoencoder_class}); give task.oobleck sizes and network=scratch"
            )
        config = OobleckConfig.from_dict(checkpoint.autoencoder_config if self.oobleck is None else self.oobleck)
        autoencoder = Oobleck(config)
        if spec.start is NetworkInit.scratch or pretrained is None:
            autoencoder.init_weights(derived_generator(spec.seed, "autoencoder"))
        else:
            load_into(autoencoder, pretrained, torch.float32, f"{checkpoint.name} (autoencoder)")
        freeze(autoencoder, spec.trainable)
        discriminator = Discriminator(replace(self.discriminator, audio_channels=config.audio_channels))
        discriminator.init_weights(derived_generator(spec.seed, "discriminator"))
        data = AudioDataModule(spec.data, autoencoder, spec.seed)
        module = AutoencoderModule(autoencoder, discriminator, self.loss, spec.optimization, spec.seed)

        def save(trainer: Trainer, folder: Path) -> None:
            if trainer.is_global_zero:
                trained = replace(
                    checkpoint,
                    autoencoder_class="oobleck",
                    autoencoder_config=vars(config),
                    autoencoder=autoencoder.state_dict(),
                )
                save_checkpoint(trained, folder)

        return TrainJob(module, data, save)


def _open_for_preview(weights: str, device: torch.device) -> Pipeline:
    """The pipeline that previews use; opened each time, so that no DiT takes memory between them."""
    if device.type != "cuda":
        return Pipeline.from_pretrained(weights, device)
    # Beside a language model in training there may be no memory for all parts at once.
    return Pipeline.from_pretrained(weights, device, torch.bfloat16, memory=MemoryMode.offload)


def _check_data(spec: TrainSpec, kind: type, name: str) -> None:
    if not isinstance(spec.data, kind):
        raise ValueError(f"data: this task trains on {name}; use data={name}")


def _check_no_adapter(spec: TrainSpec, task: str) -> None:
    if spec.adapter is not None:
        raise ValueError(f"adapter: task={task} trains weights themselves; use adapter=none")
