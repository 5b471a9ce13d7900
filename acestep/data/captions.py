"""Caption augmentation: transforms that are applied one after another, drawn anew in every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class CaptionParts:
    """A caption, and the genre and tag of its song; see ``data.text.SongText``."""

    caption: str
    genre: str = ""
    tag: str = ""


class CaptionTransform(Protocol):
    """One transform; how many numbers it draws from ``random`` does not depend on the song."""

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        """The transformed caption, with the parts for later transforms."""
        ...


class TagPosition(Enum):
    """Position of a data set's tag in a training caption."""

    prepend = "prepend"
    append = "append"
    replace = "replace"

    def insert(self, tag: str, caption: str) -> str:
        """``caption`` with ``tag``, joined as in upstream's trainer."""
        if not tag:
            return caption
        if self is TagPosition.replace or not caption:
            return tag
        return f"{tag}, {caption}" if self is TagPosition.prepend else f"{caption}, {tag}"


@dataclass(frozen=True, kw_only=True)
class ShuffleTags:
    """Shuffles captions that are lists of tags, since their order has no meaning.

    Args:
        rate: share of these captions that is shuffled. A list of tags contains commas and no sentences.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        _check_rate(self.rate, "shuffle_tags")

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        draw, order = random.random(), random.integers(2**63)
        tags = parts.caption.split(", ")
        if draw >= self.rate or len(tags) < 2 or any(mark in parts.caption for mark in ".!?;:\n"):
            return parts
        return replace(parts, caption=", ".join(np.random.default_rng(order).permutation(tags).tolist()))


@dataclass(frozen=True, kw_only=True)
class GenreOnly:
    """Replaces captions with the song's genre, where it has one.

    Upstream's ``genre_ratio`` chooses the songs once; here every epoch chooses anew.

    Args:
        rate: share of captions that is replaced.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self.rate, "genre_only")

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        return replace(parts, caption=parts.genre) if random.random() < self.rate and parts.genre else parts


@dataclass(frozen=True, kw_only=True)
class DatasetTag:
    """Inserts the data set's tag into captions.

    Args:
        position: where.
        tag: for songs that have none of their own.
    """

    position: TagPosition = TagPosition.prepend
    tag: str = ""

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        return replace(parts, caption=TagPosition(self.position).insert(parts.tag or self.tag, parts.caption))


def apply_transforms(parts: CaptionParts, transforms: Sequence[CaptionTransform], random: np.random.Generator) -> str:
    """The caption after all ``transforms``, in order."""
    for transform in transforms:
        parts = transform(parts, random)
    return parts.caption


def _check_rate(rate: float, name: str) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"data.captions.{name}.rate={rate:g}: need a share from 0 to 1")
