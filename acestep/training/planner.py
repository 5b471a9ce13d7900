"""The language model's training as Lightning runs it: songs with their codes in, a planner out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from acestep.audio.audio import Audio
from acestep.data import Draw, LatentDataset
from acestep.evaluation.planner_study import asked, planned_right
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.pipeline.sample import evaluating
from acestep.planner.decoding import Decoding
from acestep.planner.examples import Lesson, compose, improvise, listen
from acestep.planner.learning import Lessons, Losses, collate, losses
from acestep.planner.model import LanguageModel
from acestep.planner.plan import Planner, PlannerConfig, metadata
from acestep.planner.vocabulary import Vocabulary
from acestep.songs.metadata import checked
from acestep.training.codes import SongCodes
from acestep.training.datamodule import DataConfig, LatentData
from acestep.training.module import Optimization, PartLoss, Trained
from acestep.training.sharding import Sharded, is_sharded, shard_language, whole
from acestep.types import Song
from acestep.weights.checkpoint import Lengths


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What a song teaches, drawn anew in every epoch.

    Args:
        improvise: share of lessons in which nothing is asked, so that codes can be guided.
        listen: share of lessons in which codes are described; the rest are composed.
    """

    improvise: float = 0.1
    listen: float = 0.0

    def __post_init__(self) -> None:
        if min(self.improvise, self.listen) < 0 or self.improvise + self.listen > 1:
            raise ValueError(
                f"curriculum.improvise={self.improvise:g}, curriculum.listen={self.listen:g}: "
                "need shares of at least 0 that make at most 1"
            )

    def lesson(self, vocabulary: Vocabulary, song: Song, codes: Sequence[int], drawn: float) -> Lesson:
        """The lesson that ``drawn``, in [0, 1), selects."""
        if drawn < self.improvise:
            return improvise(vocabulary, codes)
        if drawn < self.improvise + self.listen:
            return listen(vocabulary, song, codes)
        return compose(vocabulary, song, codes)


@dataclass(frozen=True)
class LessonBatch:
    """One batch of lessons, and the songs that they are about."""

    lessons: Lessons
    songs: list[Song]

    def __len__(self) -> int:
        """How many lessons."""
        return len(self.songs)

    def to(self, device: torch.device | str) -> LessonBatch:
        """The same on ``device``."""
        moved = {name: value.to(device) for name, value in vars(self.lessons).items()}
        return replace(self, lessons=Lessons(**moved))


class Taught(NamedTuple):
    """A lesson, and the song that it is about."""

    lesson: Lesson
    song: Song


class SongLessons(Dataset[Taught]):
    """The lessons of songs; which one a song teaches in an epoch is a function of ``(seed, epoch, song)`` alone."""

    def __init__(
        self, songs: LatentDataset, codes: SongCodes, vocabulary: Vocabulary, curriculum: Curriculum, seed: int
    ) -> None:
        self.songs, self.codes, self.vocabulary = songs, codes, vocabulary
        self.curriculum, self.seed = curriculum, seed

    def __len__(self) -> int:
        """How many songs."""
        return len(self.songs)

    def __getitem__(self, draw: Draw | int) -> Taught:
        """The lesson that ``draw`` names, with its song."""
        epoch, index = draw if isinstance(draw, tuple) else (0, draw)
        row = int(self.songs.rows[index])
        song = checked(self.songs.store.song(row))
        drawn = np.random.default_rng((self.seed, epoch, row)).random()
        return Taught(self.curriculum.lesson(self.vocabulary, song, self.codes[row], drawn), song)


class PlannerData(LatentData):
    """A latent store as lessons: training as the curriculum says, validation by composing."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        if config.crop_frames is not None:
            raise ValueError(f"data.crop_frames={config.crop_frames}: a plan is of a whole song; set it to null")
        super().__init__(config, seed)

    def words(self) -> list[str]:
        """All that the songs for training say, for a tokenizer to be learned on."""
        songs = [self.store.song(int(row)) for row in self.training.rows]
        return [text for song in songs for text in (song.caption, song.lyrics, *map(str, metadata(song).values()))]

    def teach(self, codes: SongCodes, vocabulary: Vocabulary, curriculum: Curriculum) -> None:
        """Make lessons of the songs."""
        self.vocabulary = vocabulary
        self.training = SongLessons(self.training, codes, vocabulary, curriculum, self.seed)
        plain = Curriculum(improvise=0.0)
        self.validation = SongLessons(self.validation, codes, vocabulary, plain, self.seed)

    def collate(self, examples: Sequence[Taught]) -> LessonBatch:
        """The examples as one batch."""
        lessons = collate([lesson for lesson, _ in examples], self.vocabulary.pad)
        return LessonBatch(lessons, [song for _, song in examples])


@dataclass(frozen=True)
class Performer:
    """Who makes songs of codes: ``open`` gives them a pipeline on a device, which makes songs of ``lengths``."""

    open: Callable[[torch.device], Pipeline]
    lengths: Lengths


class PlannerModule(Trained):
    """Trains a language model on lessons: cross-entropy of the answers, every token of a step's batches alike.

    Args:
        model: its network is trained in place.
        optimization: optimiser and learning-rate schedule.
        seed: of the run.
        performer: makes the songs that are to be heard of its codes.
        judged: held-out songs of each batch that are planned from their captions and lyrics alone, at validation.
    """

    makes_songs = True

    def __init__(
        self, model: LanguageModel, optimization: Optimization, seed: int, performer: Performer, judged: int = 8
    ) -> None:
        super().__init__(model.network, optimization, seed)
        self.model = model
        self.planner = Planner(model, PlannerConfig(path="", codes=False, decoding=Decoding(temperature=0.0)))
        self.composer = Planner(model, PlannerConfig(path=""))
        self.performer = performer
        self.judged = judged
        self.network.surprise = partial(_surprise, self.network)

    def configure_model(self) -> None:
        """Under FSDP2, spread the parameters over the processes; a second call finds it done."""
        if isinstance(self.trainer.strategy, Sharded) and not is_sharded(self.network):
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            shard_language(self.network, self.network.get_decoder().layers, mesh, "surprise")

    def training_step(self, batch: LessonBatch, index: int) -> dict[str, Any]:
        """One batch's share of its step's loss; by part beside it, for whoever watches."""
        return self.step_of(self._losses(batch), len(batch))

    def validation_step(self, batch: LessonBatch, index: int) -> None:
        """Loss by part, and what share of the metadata is planned as it is from caption and lyrics alone."""
        self.log_parts(self._losses(batch))
        found = self._accuracy(batch.songs[: self.judged])
        for name, right in found.items():
            self.note(f"accuracy_{name}", sum(right) / len(right), len(right))
        every = [value for right in found.values() for value in right]
        if every:
            self.note("metadata_accuracy", sum(every) / len(every), len(every))

    def on_validation_epoch_end(self) -> None:
        """How many codes the model is undecided between, on average."""
        if "val/loss_codes" in self.trainer.callback_metrics:
            self.note("code_perplexity", math.exp(float(self.trainer.callback_metrics["val/loss_codes"])))

    def play(self, songs: Sequence[Song], sampler: Sampler | None) -> Iterator[Audio]:
        """Songs of the whole chain: of caption and lyrics alone, plans, codes, and what the performer makes of them."""
        nearest = self.performer.lengths.nearest
        with self._writing():
            plans = self.composer.plan([replace(asked(song), seconds=nearest(song.seconds)) for song in songs])
        if not self.trainer.is_global_zero:
            return iter(())
        planned = [replace(plan.song, codes=plan.codes) for plan in plans]
        return self.performer.open(self.device).generate(planned, sampler, batch_size=len(planned))

    def _losses(self, batch: LessonBatch) -> PartLoss:
        found = Losses(*self.network.surprise(batch.lessons))
        return PartLoss(found.total, found.count.detach(), found.parts)

    def _accuracy(self, songs: Sequence[Song]) -> dict[str, list[float]]:
        """Whether each field that a song has is planned as it is, by the likeliest tokens."""
        with self._writing():
            return planned_right(self.planner, songs)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside, the network can write: every process has all of it, and nothing is dropped out."""
        with evaluating(self.network), whole(self.network):
            yield


def _surprise(network: PreTrainedModel, lessons: Lessons) -> tuple[Tensor, Tensor]:
    """``losses`` as a pair: what is spread over processes is brought together for tensors alone."""
    found = losses(network, lessons)
    return found.totals, found.counts
