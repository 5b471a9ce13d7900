"""Songs to plans: what a request left open is filled in by the language model, and the codes of its music are written.

Source: upstream ``llm_inference.py`` (``generate_with_stop_condition``) and ``inference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import yaml

from acestep.conditioning.prompt import INSTRUMENTAL
from acestep.flow.noise import song_generators
from acestep.planner import prompts
from acestep.planner.answers import read_answer
from acestep.planner.codes import CODES_PER_SECOND, write_codes
from acestep.planner.decoding import Decoding
from acestep.planner.document import Documents, Rules
from acestep.planner.model import LanguageModel
from acestep.songs.metadata import checked
from acestep.types import Song
from acestep.weights.checkpoint import Lengths

ASKED_FOR = ("bpm", "duration", "keyscale", "timesignature")
"""Fields without which a plan is not whole; upstream plans nothing where a request has them all."""


LESSONS = "lessons"
"""Where a language model's ``config.json`` says what it was taught; the published ones, which know all, do not."""


@dataclass(frozen=True)
class Plan:
    """``song`` is ``request`` with every gap filled; ``codes`` are its music, five a second (none if not asked for)."""

    request: Song
    song: Song
    codes: tuple[int, ...] = ()

    @property
    def block(self) -> str:
        """What the language model reads before it writes the codes."""
        return prompts.write_plan(metadata(self.song))


@dataclass(frozen=True)
class Description:
    """What the language model hears in codes: a song in words, and its genres."""

    song: Song
    genres: str


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """A language model and how it plans.

    Args:
        path: Hugging Face folder of the language model.
        rewrite_caption: let the plan word the caption anew where the request has one, as upstream does.
        codes: write codes; without, a plan is words alone.
        negative: what guidance moves away from, in place of a request that says nothing.
        batch_size: songs planned at a time.
        decoding: how tokens are chosen.
        rules: what a plan may say.
    """

    path: str
    rewrite_caption: bool = False
    codes: bool = True
    negative: str = prompts.NOTHING_ASKED
    batch_size: int = 8
    decoding: Decoding = field(default_factory=Decoding)
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"planner.batch_size={self.batch_size}: need at least 1 song at a time")

    def load(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        lengths: Lengths | None = None,
    ) -> Planner:
        """The planner; with ``lengths`` it plans no song that a checkpoint of those does not make."""
        config = self if lengths is None else replace(self, rules=_within(self.rules, lengths))
        return Planner(LanguageModel.from_folder(self.path, device, dtype), config)


@dataclass(frozen=True)
class Planner:
    """Plans songs and describes codes.

    Example:
        >>> planner = PlannerConfig(path="acestep-5Hz-lm-1.7B").load()  # doctest: +SKIP
        >>> (plan,) = planner.plan([Song(caption="calm piano", seed=7)])  # doctest: +SKIP
    """

    model: LanguageModel
    config: PlannerConfig

    @cached_property
    def documents(self) -> Documents:
        """What may be written."""
        return Documents(self.model.vocabulary, self.config.rules, self.model.network.device)

    def plan(self, songs: Sequence[Song]) -> list[Plan]:
        """A plan for each song; what a song says stays as it says it.

        A song's draws come from its own seed, so that its plan does not depend on its batch.

        Raises:
            ValueError: if a song says what cannot be, or is too long for the language model.
        """
        songs = [checked(song) for song in songs]
        plans = self._in_batches(self.fill, songs)
        return self._in_batches(self.write_codes, plans) if self.config.codes else plans

    def fill(self, songs: Sequence[Song]) -> list[Plan]:
        """Plans without codes, as one batch."""
        plans = [Plan(song, song) for song in songs]
        gaps = [place for place, song in enumerate(songs) if self._has_gaps(song)]
        if not gaps:
            return plans
        asked = [prompts.generate(songs[place].caption, asked_lyrics(songs[place])) for place in gaps]
        answers = self.model.write(
            [self.model.vocabulary.encode(question.text) for question in asked],
            [self.documents.plan(metadata(self._kept(songs[place]))) for place in gaps],
            song_generators([songs[place].seed for place in gaps]),
            self.config.decoding,
        )
        for place, answer in zip(gaps, answers, strict=True):
            found = read_answer(self.model.vocabulary.decode(answer)).metadata
            plans[place] = Plan(songs[place], told(self._kept(songs[place]), found))
        return plans

    def write_codes(self, plans: Sequence[Plan]) -> list[Plan]:
        """The same plans with the codes of their songs, as one batch; a plan's ``song`` may have been edited before."""
        encode = self.model.vocabulary.encode
        asked = [prompts.generate(plan.request.caption, asked_lyrics(plan.song), plan.block) for plan in plans]
        unasked = prompts.unconditional(self.config.negative)
        answers = self.model.write(
            [encode(question.text) for question in asked],
            [self.documents.codes(count_codes(plan.song.seconds)) for plan in plans],
            song_generators([plan.song.seed for plan in plans]),
            self.config.decoding,
            [encode(unasked.text)] * len(plans),
        )
        first = self.model.vocabulary.first_code
        codes = [tuple(token - first for token in answer[:-1]) for answer in answers]
        return [replace(plan, codes=found) for plan, found in zip(plans, codes, strict=True)]

    def describe(self, codes: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Description]:
        """What music each song's codes are, lyrics included; ``seeds`` for the draws of each.

        Raises:
            ValueError: if the language model is known to have been taught to write codes alone, not to read them.
        """
        lessons = getattr(self.model.network.config, LESSONS, None)
        if lessons and not lessons.get("listen"):
            raise ValueError(
                f"planner.path={self.config.path}: was never taught to describe codes; name one that was, or train it "
                "with task.curriculum.listen above 0"
            )
        asked = [prompts.understand(write_codes(song) or prompts.NOTHING_ASKED) for song in codes]
        lengths = [{"duration": round(len(song) / CODES_PER_SECOND)} if song else {} for song in codes]
        answers = self.model.write(
            [self.model.vocabulary.encode(question.text) for question in asked],
            [self.documents.description(known) for known in lengths],
            song_generators(seeds),
            self.config.decoding,
        )
        described = []
        for seed, answer in zip(seeds, answers, strict=True):
            found = read_answer(self.model.vocabulary.decode(answer))
            song = told(Song(lyrics=found.lyrics, seed=seed), found.metadata)
            described.append(Description(song, str(found.metadata.get("genres", ""))))
        return described

    def _has_gaps(self, song: Song) -> bool:
        known = metadata(self._kept(song))
        return any(known[name] is None for name in ("caption", *ASKED_FOR))

    def _kept(self, song: Song) -> Song:
        """What the plan has to say as the request does."""
        return replace(song, caption="") if self.config.rewrite_caption else song

    def _in_batches(self, make: Any, items: Sequence[Any]) -> list[Plan]:
        return [made for batch in _batches(items, self.config.batch_size) for made in make(batch)]


def metadata(song: Song) -> dict[str, Any]:
    """What ``song`` says, by the plan's names; ``None`` where it is open."""
    return {
        "bpm": song.bpm,
        "caption": song.caption or None,
        "duration": None if song.seconds is None else max(1, int(song.seconds)),
        "keyscale": song.key,
        "language": None if song.language == "unknown" else song.language,
        "timesignature": song.time_signature,
    }


def told(song: Song, found: Mapping[str, int | str]) -> Song:
    """``song`` with what ``found``, an answer's metadata, says where the song leaves it open.

    Differs from upstream, which loses the language (it is stored under one name and looked up under another).
    """
    plain = {name: _unquoted(value) for name, value in found.items()}
    duration, bpm = plain.get("duration"), plain.get("bpm")
    return checked(
        replace(
            song,
            caption=song.caption or str(plain.get("caption", "")),
            language=str(plain.get("language", song.language)) if song.language == "unknown" else song.language,
            seconds=float(duration) if song.seconds is None and isinstance(duration, int) else song.seconds,
            bpm=bpm if song.bpm is None and isinstance(bpm, int) else song.bpm,
            key=song.key or _text(plain.get("keyscale")),
            time_signature=song.time_signature or _text(plain.get("timesignature")),
        )
    )


def count_codes(seconds: float | None) -> int:
    """Codes that cover ``seconds``."""
    if seconds is None:
        raise ValueError("song.seconds: not given, and codes need a length; give one, or add planner.codes=false")
    return max(1, math.ceil(round(seconds * CODES_PER_SECOND, 3)))


def _unquoted(value: int | str) -> int | str:
    """A value without YAML's quotes, unless there is nothing between them."""
    if not isinstance(value, str) or value[:1] not in {"'", '"'}:
        return value
    try:
        return str(yaml.safe_load(value)).strip() or value
    except yaml.YAMLError:
        return value


def _text(value: int | str | None) -> str | None:
    return None if value is None else str(value)


def asked_lyrics(song: Song) -> str:
    """The lyrics as they stand in a question."""
    return song.lyrics if song.lyrics.strip() else INSTRUMENTAL


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _within(rules: Rules, lengths: Lengths) -> Rules:
    low = max(rules.seconds[0], math.ceil(lengths.min_seconds))
    high = min(rules.seconds[1], math.floor(lengths.max_seconds))
    if low > high:
        raise ValueError(
            f"planner.rules.seconds={list(rules.seconds)}: the checkpoint makes {lengths.min_seconds:g} to "
            f"{lengths.max_seconds:g} s; let them overlap"
        )
    return replace(rules, seconds=(low, high))
