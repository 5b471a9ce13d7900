"""Base classes of metrics. A metric is one class: its fields are its configuration, its methods turn audio into scores.

There are four kinds, by what a song is compared with:

- :class:`SongMetric`: its own prompt.
- :class:`PairMetric`: the recording of the same prompt.
- :class:`TakesMetric`: other songs of the same prompt.
- :class:`SetMetric`: all songs of a sweep point, compared with the reference recordings.

Subclass one and implement its method; the class's dotted path is then a metric of any evaluation:
``metrics.mine._target_=my_module.MyMetric``. See :class:`SongMetric` for an example.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from acestep.evaluation.embedders.base import Embedder, FeatureExtractor, Features, shared
from acestep.evaluation.prompts import EvaluationPrompt

Scores = dict[str, float]
"""Numbers by name. The first name that a metric returns is its headline."""


@dataclass(frozen=True, kw_only=True)
class Metric(FeatureExtractor):
    """Base of the four kinds. A metric is its own feature extractor unless it overrides :attr:`extractor`.

    Attributes:
        higher_is_better: as in torchmetrics; ``None`` where neither direction is better.
    """

    higher_is_better: ClassVar[bool | None] = True

    @property
    def extractor(self) -> FeatureExtractor:
        """Turns audio into the features that the metric reads."""
        return self

    @property
    def chance(self) -> Mapping[str, float]:
        """Expected scores of a random guess, by name, where they are known."""
        return {}

    @property
    def needs_reference(self) -> bool:
        """Whether the metric is left out with fewer than 2 reference recordings."""
        return False

    @cached_property
    def state(self) -> dict[str, Any]:
        """Values that methods keep between calls; the fields are frozen."""
        return {}

    def load(self) -> Self:
        """A copy with its weights loaded and an empty state.

        Raises:
            MissingWeightsError: weights or a library are not on this machine.
        """
        loaded = copy(self)
        loaded.__dict__.pop("state", None)
        _ = loaded.extractor.fingerprint
        return loaded

    def applies(self, prompt: EvaluationPrompt) -> bool:
        """Whether songs of this prompt can be scored."""
        return True

    def extractor_for(self, prompt: EvaluationPrompt) -> FeatureExtractor:
        """The extractor for songs of this prompt, where features depend on the prompt."""
        return self.extractor

    def recordings(self, references: Sequence[Path]) -> Sequence[Path]:
        """Recordings whose features are needed before songs are scored; by default the reference recordings."""
        return references


@dataclass(frozen=True, kw_only=True)
class SongMetric(Metric):
    """Scores one song against its prompt.

    The peak level of a song, for example, in a file of one's own::

        from acestep.evaluation.metrics import SongMetric

        class Peak(SongMetric):
            higher_is_better = None

            def extract(self, audio):
                return {"peak": audio.samples.abs().max()[None]}
    """

    headline: ClassVar[str] = ""
    """Feature that the default :meth:`score` puts first; empty goes by name."""

    @property
    def uses_prompt(self) -> bool:
        """Whether scores depend on the prompt, so that other prompts are a control; by default if it has a `score`."""
        return type(self).score is not SongMetric.score

    def recordings(self, references: Sequence[Path]) -> Sequence[Path]:
        """Recordings that :meth:`fit` takes; by default none."""
        return ()

    def fit(self, features: Sequence[Features]) -> None:
        """Called once with the features of :meth:`recordings`, before any song is scored.

        May raise ``ValueError`` if the metric does not work on them; :attr:`state` may keep what :meth:`score` needs.
        """

    def score(self, features: Features, prompt: EvaluationPrompt) -> Scores:
        """Scores of one song; by default its features, of one number each. After a ``ValueError`` it is unscored."""
        return {
            name: float(features[name]) for name in sorted(features, key=lambda name: (name != self.headline, name))
        }

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> Scores:
        """Scores of all songs of a sweep point together that are no means over songs."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PairMetric(Metric, ABC):
    """Compares a song with the recording of the same prompt."""

    @abstractmethod
    def compare(self, features: Features, recording: Features) -> Scores:
        """Scores of one song."""


@dataclass(frozen=True, kw_only=True)
class TakesMetric(Metric, ABC):
    """Compares a song with other songs of the same prompt and sweep point, generated from other noise."""

    @abstractmethod
    def compare_takes(self, features: Features, others: Sequence[Features]) -> Scores:
        """Scores of one song; ``others`` has at least one."""


@dataclass(frozen=True, kw_only=True)
class SetMetric(Metric, ABC):
    """Compares all songs of a sweep point with the reference recordings."""

    @property
    def needs_reference(self) -> bool:
        return True

    @abstractmethod
    def distance(self, features: Sequence[Features], reference: Sequence[Features], same_songs: bool = False) -> Scores:
        """Scores of the set. ``same_songs``: the songs are the reference's own, processed."""

    def half_distances(self, features: Sequence[Features], reference: Sequence[Features]) -> list[float] | None:
        """Distances of random halves of the songs, the same halves at every sweep point.

        Their differences estimate the standard error of a difference between two points; ``None`` without support.
        """
        return None

    def write_statistics(self, reference: Sequence[Features], path: Path) -> None:
        """Write the reference's statistics, for later evaluations without its recordings; by default nothing."""


@dataclass(frozen=True, kw_only=True)
class EmbedderMetric(Metric):
    """The part of a metric that reads the ``windows`` of an embedder; combine it with one of the four kinds.

    Attributes:
        embedder: the embedding model.
    """

    embedder: Embedder

    @property
    def extractor(self) -> Embedder:
        return shared(self.embedder)
