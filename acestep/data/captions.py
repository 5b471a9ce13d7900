"""Captions that vary from epoch to epoch: small changes, put one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class CaptionParts:
    """A caption and what it can be made of: see ``data.words.Description``."""

    caption: str
    genre: str = ""
    tag: str = ""


class CaptionChange(Protocol):
    """One change, drawn from ``random``; what it draws does not depend on the song."""

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        """The changed caption, with its parts for those who come after."""
        ...


class TagPosition(Enum):
    """Where a data set's own tag goes in a training caption."""

    prepend = "prepend"
    append = "append"
    replace = "replace"

    def put(self, tag: str, caption: str) -> str:
        """``caption`` with ``tag``, as upstream's trainer joins them."""
        if not tag:
            return caption
        if self is TagPosition.replace or not caption:
            return tag
        return f"{tag}, {caption}" if self is TagPosition.prepend else f"{caption}, {tag}"


@dataclass(frozen=True, kw_only=True)
class ShuffleTags:
    """The order of a list of tags says nothing: this share of captions that are such lists is shuffled.

    A list of tags has commas and no sentences.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        _check_rate(self.rate, "shuffle_tags")

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        """Shuffled, or as it was."""
        draw, order = random.random(), random.integers(2**63)
        tags = parts.caption.split(", ")
        if draw >= self.rate or len(tags) < 2 or any(mark in parts.caption for mark in ".!?;:\n"):
            return parts
        return replace(parts, caption=", ".join(np.random.default_rng(order).permutation(tags).tolist()))


@dataclass(frozen=True, kw_only=True)
class GenreOnly:
    """This share of captions is replaced with the song's genre, where it has one.

    Upstream's ``genre_ratio`` chooses songs once and for all; here every epoch chooses anew.
    """

    rate: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self.rate, "genre_only")

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        """The genre, or the caption as it was."""
        return replace(parts, caption=parts.genre) if random.random() < self.rate and parts.genre else parts


@dataclass(frozen=True, kw_only=True)
class OwnTag:
    """Puts the data set's own tag into captions: that of the song, or ``tag`` for songs that have none."""

    position: TagPosition = TagPosition.prepend
    tag: str = ""

    def __call__(self, parts: CaptionParts, random: np.random.Generator) -> CaptionParts:
        """With the tag."""
        return replace(parts, caption=TagPosition(self.position).put(parts.tag or self.tag, parts.caption))


def changed(parts: CaptionParts, changes: Sequence[CaptionChange], random: np.random.Generator) -> str:
    """The caption after all ``changes``, in order."""
    for change in changes:
        parts = change(parts, random)
    return parts.caption


def _check_rate(rate: float, name: str) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"data.captions.{name}.rate={rate:g}: need a share from 0 to 1")
