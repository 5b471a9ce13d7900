"""Training of the 5 Hz language model, the planner, as a LightningModule: data, loss and previews."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from acestep.audio.audio import Audio
from acestep.data import EpochIndex, LatentDataset, LatentStore
from acestep.evaluation.planner_study import field_matches, planning_request
from acestep.files import atomic, tensors_hash
from acestep.flow.sampler import Sampler
from acestep.models.acestep import AceStep
from acestep.pipeline.pipeline import Pipeline
from acestep.pipeline.sample import eval_mode
from acestep.planner.codes import latents_to_codes
from acestep.planner.decoding import Decoding
from acestep.planner.examples import (
    ExampleBatch,
    PartLosses,
    TrainingExample,
    captioning_example,
    collate_examples,
    conditional_example,
    losses_by_part,
    unconditional_example,
)
from acestep.planner.model import LanguageModel
from acestep.planner.plan import Planner, PlannerConfig, plan_metadata
from acestep.planner.vocabulary import Vocabulary
from acestep.songs import Request, Song
from acestep.songs.metadata import validate_song
from acestep.training.checkpoint import FSDP2Strategy
from acestep.training.datamodule import DataConfig, ResumableDataModule, store_facts
from acestep.training.module import Optimization, SummedLoss, TrainingModule
from acestep.training.sharding import is_sharded, shard_language_model, unsharded
from acestep.weights.checkpoint import Lengths

LOSS = "loss"
"""Method of the network that computes the loss: FSDP2 unshards parameters only in methods that are registered."""


@dataclass(frozen=True, kw_only=True)
class ExampleMix:
    """Probabilities of the kinds of training examples, which are drawn anew in every epoch.

    Args:
        unconditional: codes without a prompt, as classifier-free guidance of codes needs them.
        captioning: codes to caption, metadata and lyrics; the rest is conditional, caption and lyrics to codes.
    """

    unconditional: float = 0.1
    captioning: float = 0.0

    def __post_init__(self) -> None:
        if min(self.unconditional, self.captioning) < 0 or self.unconditional + self.captioning > 1:
            raise ValueError(
                f"task.example_mix.unconditional={self.unconditional:g}, "
                f"task.example_mix.captioning={self.captioning:g}: need at least 0 each and at most 1 in all"
            )

    def example(self, vocabulary: Vocabulary, song: Song, codes: Sequence[int], drawn: float) -> TrainingExample:
        """The example of the kind that ``drawn``, uniform in [0, 1), selects."""
        if drawn < self.unconditional:
            return unconditional_example(vocabulary, codes)
        if drawn < self.unconditional + self.captioning:
            return captioning_example(vocabulary, song, codes)
        return conditional_example(vocabulary, song, codes)


class AudioCodeCache:
    """Codes of each song, by its row in the store; made in full when first needed, which takes long.

    They are computed from the means of the latents, and so are the same in every epoch. They are kept in
    ``STORE/.codes/NAME.npz``, where ``NAME`` is a hash of the tokenizer's weights and the store's settings.
    """

    def __init__(self, store: LatentStore, network: AceStep, silence: Float[Tensor, "1 ts c"]) -> None:
        path = store.folder / ".codes" / f"{_codes_name(store, network, silence)}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                self._flat, self._offsets = file["codes"], file["offsets"]
            if len(self._offsets) == len(store) + 1:
                return
        codes = [_codes(store, row, network, silence) for row in range(len(store))]
        self._flat = np.concatenate(codes)
        self._offsets = np.cumsum([0, *map(len, codes)])
        with atomic(path) as aside, aside.open("wb") as file:
            np.savez(file, codes=self._flat, offsets=self._offsets)

    def __getitem__(self, row: int) -> list[int]:
        """The codes of one song."""
        codes: list[int] = self._flat[self._offsets[row] : self._offsets[row + 1]].tolist()
        return codes


def _codes(store: LatentStore, row: int, network: AceStep, silence: Tensor) -> NDArray[np.uint16]:
    mean, _ = store.latents(row)
    (codes,) = latents_to_codes(network, [mean.float()], silence)
    return np.asarray(codes, dtype=np.uint16)


def _codes_name(store: LatentStore, network: AceStep, silence: Tensor) -> str:
    tensors = {**network.tokenizer.state_dict(), "silence": silence[:, : network.config.pool_window_size]}
    return tensors_hash(tensors, prefix=f"{store.fingerprint} {len(store)} {''.join(store.sha256)}")[:16]


class LabelledExample(NamedTuple):
    """An example and its song."""

    example: TrainingExample
    song: Song


@dataclass(frozen=True)
class LabelledBatch:
    """A batch of examples and their songs."""

    examples: ExampleBatch
    songs: list[Song]

    def __len__(self) -> int:
        return len(self.songs)

    def to(self, device: torch.device | str) -> LabelledBatch:
        moved = {name: value.to(device) for name, value in vars(self.examples).items()}
        return replace(self, examples=ExampleBatch(**moved))


class PlannerDataset(Dataset[LabelledExample]):
    """Examples of songs; the kind of a song's example is a function of ``(seed, epoch, song)``."""

    def __init__(
        self, songs: LatentDataset, codes: AudioCodeCache, vocabulary: Vocabulary, mix: ExampleMix, seed: int
    ) -> None:
        self.songs, self.codes, self.vocabulary, self.mix, self.seed = songs, codes, vocabulary, mix, seed

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, index: EpochIndex | int) -> LabelledExample:
        epoch, number = index if isinstance(index, tuple) else (0, index)
        row = int(self.songs.rows[number])
        song = validate_song(self.songs.store.song(row))
        drawn = np.random.default_rng((self.seed, epoch, row)).random()
        return LabelledExample(self.mix.example(self.vocabulary, song, self.codes[row], drawn), song)


class PlannerDataModule(ResumableDataModule):
    """The songs of a latent store as examples for a language model; validation examples are all conditional.

    ``set_examples`` is called before training, when the vocabulary is known, which may be learned from ``texts``.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__(config.batch_size, config.workers, seed)
        if config.crop_frames is not None:
            raise ValueError(f"data.crop_frames={config.crop_frames}: a plan is of a whole song; set it to null")
        if config.bucket is not None or config.pack_frames is not None:
            raise ValueError(
                f"data.bucket={config.bucket}, data.pack_frames={config.pack_frames}: not supported by task=planner; "
                "set both to null"
            )
        self.songs, self.held_out = config.load(seed)
        self.store = self.songs.store

    def texts(self) -> list[str]:
        """Captions, lyrics and metadata of the training songs, to train a tokenizer on."""
        songs = [self.store.song(int(row)) for row in self.songs.rows]
        return [text for song in songs for text in (song.caption, song.lyrics, *map(str, plan_metadata(song).values()))]

    def set_examples(self, codes: AudioCodeCache, vocabulary: Vocabulary, mix: ExampleMix) -> None:
        """Create training and validation data; call it once the vocabulary is known."""
        self.vocabulary = vocabulary
        self.training = PlannerDataset(self.songs, codes, vocabulary, mix, self.seed)
        conditional = ExampleMix(unconditional=0.0)
        self.validation = PlannerDataset(self.held_out, codes, vocabulary, conditional, self.seed)

    def facts(self) -> dict[str, Any]:
        return {**store_facts(self.store), **super().facts()}

    def collate(self, examples: Sequence[LabelledExample]) -> LabelledBatch:
        batch = collate_examples([example for example, _ in examples], self.vocabulary.pad)
        return LabelledBatch(batch, [song for _, song in examples])


@dataclass(frozen=True)
class PreviewPipeline:
    """Opens the pipeline that generates audio from planned codes, on a device; ``lengths`` are those it supports."""

    open: Callable[[torch.device], Pipeline]
    lengths: Lengths


class PlannerModule(TrainingModule):
    """Trains a language model by next-token cross-entropy on output tokens, averaged over the tokens of a step.

    Args:
        model: its network is trained in place.
        optimization: optimiser and learning-rate schedule.
        seed: of the run.
        preview: pipeline that generates audio from its codes.
        validation_plans: held-out songs of each batch whose metadata is planned at validation, for its accuracy.
    """

    network: PreTrainedModel
    can_sample = True

    def __init__(
        self,
        model: LanguageModel,
        optimization: Optimization,
        seed: int,
        preview: PreviewPipeline,
        validation_plans: int = 8,
    ) -> None:
        super().__init__(model.network, optimization, seed)
        self.metadata_planner = Planner(model, PlannerConfig(path="", codes=False, decoding=Decoding(temperature=0.0)))
        self.code_planner = Planner(model, PlannerConfig(path=""))
        self.preview = preview
        self.validation_plans = validation_plans
        setattr(self.network, LOSS, partial(_loss_tensors, self.network))

    def configure_model(self) -> None:
        """Shard the parameters under FSDP2; Lightning calls it again for each validation and fit."""
        if isinstance(self.trainer.strategy, FSDP2Strategy) and not is_sharded(self.network):
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            shard_language_model(self.network, self.network.get_decoder().layers, mesh, LOSS)

    def training_step(self, batch: LabelledBatch, index: int) -> dict[str, Any]:
        return self.training_output(self._loss(batch), len(batch))

    def validation_step(self, batch: LabelledBatch, index: int) -> None:
        """Loss by part, and accuracy of the metadata planned from caption and lyrics, by the most probable tokens."""
        self.log_val_losses(self._loss(batch))
        with self._generating():
            songs = batch.songs[: self.validation_plans]
            matches = field_matches(songs, self.metadata_planner.fill([planning_request(song) for song in songs]))
        for name, values in matches.items():
            self.log_val(f"accuracy_{name}", sum(values) / len(values), len(values))
        every = [value for values in matches.values() for value in values]
        if every:
            self.log_val("metadata_accuracy", sum(every) / len(every), len(every))

    def on_validation_epoch_end(self) -> None:
        """Perplexity of the codes."""
        if "val/loss_codes" in self.trainer.callback_metrics:
            self.log_val("code_perplexity", math.exp(float(self.trainer.callback_metrics["val/loss_codes"])))

    def sample(self, songs: Sequence[Song], sampler: Sampler | None) -> Iterator[Audio]:
        """Audio of plans and codes that are written from caption and lyrics; under FSDP2, all ranks write them."""
        lengths = self.preview.lengths
        requests = [
            replace(planning_request(song), seconds=lengths.nearest(song.seconds or lengths.default_seconds))
            for song in songs
        ]
        with self._generating():
            plans = self.code_planner.plan(requests)
        if not self.trainer.is_global_zero:
            return iter(())
        planned = [replace(cast(Request, plan.song), codes=plan.codes) for plan in plans]
        return self.preview.open(self.device).generate(planned, sampler, batch_size=len(planned))

    def _loss(self, batch: LabelledBatch) -> SummedLoss:
        losses = PartLosses(*getattr(self.network, LOSS)(batch.examples))
        return SummedLoss(losses.total, losses.count, losses.parts)

    @contextmanager
    def _generating(self) -> Iterator[None]:
        """Evaluation mode with whole parameters in every process."""
        with eval_mode(self.network), unsharded(self.network):
            yield


def _loss_tensors(network: PreTrainedModel, batch: ExampleBatch) -> tuple[Tensor, Tensor]:
    """``losses_by_part`` as tensors: FSDP2's hooks do not look into dataclasses."""
    losses = losses_by_part(network, batch)
    return losses.totals, losses.counts
