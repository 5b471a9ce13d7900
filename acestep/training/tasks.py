"""What can be trained: each task makes, of what every training is given, a module, its data and a way to save them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer

from acestep.adapters import save_adapter
from acestep.conditioning.upstream import TrainerConditioner
from acestep.data import autoencoder_settings
from acestep.flow.objective import FlowMatching
from acestep.models.acestep import AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.models.discriminators import Discriminator, DiscriminatorConfig
from acestep.modes import Memory
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.begin import Pretrained
from acestep.planner.model import LanguageModel
from acestep.planner.plan import LESSONS
from acestep.training.audio_datamodule import AudioConfig, AudioData
from acestep.training.autoencoder import AutoencoderModule, Rebuild
from acestep.training.codes import SongCodes
from acestep.training.datamodule import DataConfig, LatentData, SongStream
from acestep.training.dit import DiTModule
from acestep.training.fit import Adapter, Start, load_pipeline, save_result, select_trained
from acestep.training.module import Optimization, Trained, freeze
from acestep.training.planner import Curriculum, Performer, PlannerData, PlannerModule
from acestep.training.seeding import derived_generator
from acestep.training.sharding import gather
from acestep.training.tokenizer import TokenizerModule
from acestep.training.trainer import TrainerConfig
from acestep.weights.open import open_checkpoint
from acestep.weights.save import save_checkpoint
from acestep.weights.tensors import load_into


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What every training is given: the values of ``train.yaml``, built."""

    weights: str
    start: Start
    model: AceStepConfig
    trainable: str
    adapter: Adapter | None
    objective: FlowMatching
    data: Any
    optimization: Optimization
    trainer: TrainerConfig
    seed: int


@dataclass(frozen=True)
class Job:
    """A training, ready to run. ``save`` writes its result to a folder; all processes call it."""

    module: Trained
    data: SongStream
    save: Callable[[Trainer, Path], None]


class Begin(Protocol):
    """Where a language model's training starts."""

    def __call__(self, texts: list[str], codes: int, generator: torch.Generator) -> LanguageModel:
        """The model to train, with tokens for ``codes`` codes."""
        ...


class Conditioning(Enum):
    """What training conditions on: what generation does, or what upstream's trainer did (``TrainerConditioner``)."""

    generation = "generation"
    upstream_v1_5_trainer = "upstream_v1_5_trainer"


@dataclass(frozen=True, kw_only=True)
class DiTTask:
    """The DiT, on latents.

    Args:
        conditioning: of training; validation and samples are conditioned as generation is.
    """

    conditioning: Conditioning = Conditioning.generation

    def __call__(self, parts: Parts) -> Job:
        """Its training."""
        _check_data(parts, DataConfig, "latents")
        pipeline = load_pipeline(parts.weights, parts.model, parts.start, parts.seed)
        select_trained(pipeline.network, parts.trainable, parts.adapter, parts.seed)
        data = LatentData(parts.data, parts.seed)
        data.store.check(autoencoder_settings(pipeline.autoencoder))
        parts.trainer.prepare(pipeline.network.decoder.layers)
        conditioner = pipeline.conditioner
        if Conditioning(self.conditioning) is Conditioning.upstream_v1_5_trainer:
            conditioner = TrainerConditioner.like(conditioner)
        module = DiTModule(pipeline, parts.objective, parts.optimization, parts.seed, conditioner=conditioner)

        def save(trainer: Trainer, folder: Path) -> None:
            save_result(trainer, pipeline, folder, parts.adapter, parts.weights)

        return Job(module, data, save)


@dataclass(frozen=True, kw_only=True)
class TokenizerTask:
    """The audio tokenizer and detokenizer, on latents; ``trainable`` says which of them."""

    def __call__(self, parts: Parts) -> Job:
        """Its training."""
        _no_adapter(parts, "tokenizer")
        _check_data(parts, DataConfig, "latents")
        pipeline = load_pipeline(parts.weights, parts.model, parts.start, parts.seed)
        select_trained(pipeline.network, parts.trainable, None, parts.seed)
        data = LatentData(parts.data, parts.seed)
        data.store.check(autoencoder_settings(pipeline.autoencoder))
        module = TokenizerModule(pipeline, parts.optimization, parts.seed)

        def save(trainer: Trainer, folder: Path) -> None:
            save_result(trainer, pipeline, folder, None, parts.weights)

        return Job(module, data, save)


@dataclass(frozen=True, kw_only=True)
class PlannerTask:
    """The language model, on the words of a store's songs and the codes that ``weights``' tokenizer makes of them.

    Args:
        language: where it starts.
        curriculum: what a song teaches.
        judged: held-out songs of each batch that are planned at validation.
    """

    language: Begin
    curriculum: Curriculum = field(default_factory=Curriculum)
    judged: int = 8

    def __call__(self, parts: Parts) -> Job:
        """Its training."""
        if not callable(self.language):
            raise ValueError("language=none: a planner's training has to start somewhere; use language=pretrained")
        _check_data(parts, DataConfig, "latents")
        pipeline = load_pipeline(parts.weights, parts.model, Start.pretrained, parts.seed)
        data = PlannerData(parts.data, parts.seed)
        data.store.check(autoencoder_settings(pipeline.autoencoder))
        codes = SongCodes(data.store, pipeline.network, pipeline.conditioner.silence)
        size = pipeline.network.tokenizer.quantizer.codebook_size
        model = self.language(data.words(), size, derived_generator(parts.seed, "language"))
        if model.vocabulary.codes != size:
            raise ValueError(
                f"language: the language model spells {model.vocabulary.codes} codes, and the tokenizer of "
                f"weights={parts.weights} has {size}; start from another"
            )
        data.teach(codes, model.vocabulary, self.curriculum)
        setattr(model.network.config, LESSONS, asdict(self.curriculum))
        base = self._adapt(model, parts)
        performer = Performer(partial(_open, parts.weights), pipeline.lengths)
        module = PlannerModule(model, parts.optimization, parts.seed, performer, self.judged)

        def save(trainer: Trainer, folder: Path) -> None:
            gather(model.network)
            if not trainer.is_global_zero:
                return
            if base is None:
                model.save(folder)
            else:
                save_adapter(model.network, folder, base)

        return Job(module, data, save)

    def _adapt(self, model: LanguageModel, parts: Parts) -> str | None:
        """Choose what trains; the folder of the weights below an adapter, if there is one."""
        if parts.adapter is None:
            freeze(model.network, parts.trainable)
            return None
        if not isinstance(self.language, Pretrained):
            raise ValueError("adapter: an adapter needs trained weights below it; choose language=pretrained")
        model.network.requires_grad_(False)
        parts.adapter(model.network, derived_generator(parts.seed, "adapter"))
        return self.language.path


@dataclass(frozen=True, kw_only=True)
class AutoencoderTask:
    """An Oobleck autoencoder, on audio; ``trainable`` says whether its decoder alone.

    Args:
        oobleck: sizes of a new one, for ``network=scratch``, as fields of ``OobleckConfig``; left out, those of the one
            in ``weights``.
        discriminator: sizes of its judges.
        rebuild: what it is to lower.
    """

    oobleck: Mapping[str, Any] | None = None
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    rebuild: Rebuild = field(default_factory=Rebuild)

    def __call__(self, parts: Parts) -> Job:
        """Its training."""
        _no_adapter(parts, "autoencoder")
        _check_data(parts, AudioConfig, "audio")
        if parts.trainer.accumulate > 1:
            raise ValueError(
                f"trainer.accumulate={parts.trainer.accumulate}: task=autoencoder steps after every batch; use 1, and "
                "a larger data.batch_size"
            )
        if parts.trainer.gradient_clip is not None:
            raise ValueError(
                f"trainer.gradient_clip={parts.trainer.gradient_clip:g}: task=autoencoder clips both its networks "
                "itself; use null, and task.rebuild.gradient_clip"
            )
        checkpoint = open_checkpoint(parts.weights)
        has_one = checkpoint.autoencoder_class == "oobleck" and checkpoint.autoencoder is not None
        if not has_one and (self.oobleck is None or parts.start is Start.pretrained):
            raise ValueError(
                f"weights={parts.weights}: has no Oobleck autoencoder to train (its class is "
                f"{checkpoint.autoencoder_class}); give task.oobleck sizes and network=scratch"
            )
        config = OobleckConfig.from_dict(checkpoint.autoencoder_config if self.oobleck is None else self.oobleck)
        autoencoder = Oobleck(config)
        if parts.start is Start.scratch:
            autoencoder.init_weights(derived_generator(parts.seed, "autoencoder"))
        else:
            load_into(autoencoder, checkpoint.autoencoder, torch.float32, f"{checkpoint.name} (autoencoder)")
        freeze(autoencoder, parts.trainable)
        discriminator = Discriminator(replace(self.discriminator, audio_channels=config.audio_channels))
        discriminator.init_weights(derived_generator(parts.seed, "discriminator"))
        data = AudioData(parts.data, autoencoder, parts.seed)
        module = AutoencoderModule(autoencoder, discriminator, self.rebuild, parts.optimization, parts.seed)

        def save(trainer: Trainer, folder: Path) -> None:
            if trainer.is_global_zero:
                settings = {"autoencoder_class": "oobleck", "autoencoder_config": vars(config)}
                save_checkpoint(replace(checkpoint, autoencoder=autoencoder.state_dict(), **settings), folder)

        return Job(module, data, save)


def _open(weights: str, device: torch.device) -> Pipeline:
    """The checkpoint as songs are made with it: opened anew each time, so that between them no DiT takes room."""
    if device.type != "cuda":
        return Pipeline.from_pretrained(weights, device)
    # Beside a language model in training there may be no room for all parts at once.
    return Pipeline.from_pretrained(weights, device, torch.bfloat16, memory=Memory.offload)


def _check_data(parts: Parts, kind: type, name: str) -> None:
    if not isinstance(parts.data, kind):
        raise ValueError(f"data: this task trains on {name}; use data={name}")


def _no_adapter(parts: Parts, task: str) -> None:
    if parts.adapter is not None:
        raise ValueError(f"adapter: task={task} trains weights themselves; use adapter=none")
