"""Planner: the language model fills the fields that a request leaves open, and writes the audio codes of the song.

Source: upstream ``llm_inference.py`` (``generate_with_stop_condition``) and ``inference.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
import yaml

from acestep.conditioning.prompt import INSTRUMENTAL
from acestep.flow.noise import song_generators
from acestep.planner import prompts
from acestep.planner.codes import CODES_PER_SECOND, write_codes
from acestep.planner.decoding import Decoding
from acestep.planner.grammar import GrammarMatcher, OutputGrammars, Rules
from acestep.planner.model import LanguageModel
from acestep.songs import Song
from acestep.songs.metadata import validate_song
from acestep.weights.checkpoint import Lengths

REQUIRED_FIELDS = ("bpm", "caption", "duration", "keyscale", "timesignature")
"""A request that has all of them is not planned, as upstream does."""
EXAMPLE_MIX_KEY = "lessons"
"""Key of a language model's ``config.json`` with the shares of the training examples; published models have none."""

T = TypeVar("T")


@dataclass(frozen=True)
class SongPlan:
    """``song`` is ``request`` with every open field filled; ``codes``, five a second, are empty if not generated."""

    request: Song
    song: Song
    codes: tuple[int, ...] = ()

    @property
    def block(self) -> str:
        """The plan block that precedes the codes in the language model's context."""
        return prompts.write_plan(plan_metadata(self.song))


@dataclass(frozen=True)
class SongDescription:
    """Caption, metadata and lyrics that the language model reads from audio codes, and the genres."""

    song: Song
    genres: str


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """A language model and its settings as a planner.

    Args:
        path: Hugging Face folder of the language model.
        rewrite_caption: let the plan rewrite the request's caption, as upstream does.
        codes: write codes; without, a plan is metadata and caption only.
        negative: prompt of the guidance's unconditional branch; the default is upstream's.
        batch_size: songs planned at a time.
        decoding: sampling settings.
        rules: values that a plan may have.
    """

    path: str
    rewrite_caption: bool = False
    codes: bool = True
    negative: str = prompts.NO_USER_INPUT
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
        """The planner; with ``lengths``, durations are limited to those that a checkpoint generates."""
        config = self if lengths is None else replace(self, rules=_limit_seconds(self.rules, lengths))
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
    def grammars(self) -> OutputGrammars:
        return OutputGrammars(self.model.vocabulary, self.config.rules, self.model.network.device)

    def plan(self, songs: Sequence[Song]) -> list[SongPlan]:
        """A plan for each song; fields that a song has are kept.

        Tokens are sampled from a generator seeded by the song, so that a plan does not depend on its batch.

        Raises:
            ValueError: a field of a song is invalid, or a song is too long for the language model's context.
        """
        plans = self._in_batches(self.fill, [validate_song(song) for song in songs])
        return self._in_batches(self.write_codes, plans) if self.config.codes else plans

    def fill(self, songs: Sequence[Song]) -> list[SongPlan]:
        """Plans without codes, as one batch."""
        plans = [SongPlan(song, song) for song in songs]
        kept = [replace(song, caption="") if self.config.rewrite_caption else song for song in songs]
        known = [plan_metadata(song) for song in kept]
        open_rows = [row for row, fields in enumerate(known) if any(fields[name] is None for name in REQUIRED_FIELDS)]
        outputs = self._generate(
            [prompts.generation_prompt(songs[row].caption, prompt_lyrics(songs[row])) for row in open_rows],
            [self.grammars.plan(known[row]) for row in open_rows],
            [songs[row].seed for row in open_rows],
        )
        for row, output in zip(open_rows, outputs, strict=True):
            metadata = prompts.parse_output(self.model.vocabulary.decode(output)).metadata
            plans[row] = SongPlan(songs[row], fill_open_fields(kept[row], metadata))
        return plans

    def write_codes(self, plans: Sequence[SongPlan]) -> list[SongPlan]:
        """The plans with the codes of their songs, as one batch; a plan's ``song`` may have been edited before."""
        outputs = self._generate(
            [prompts.generation_prompt(plan.request.caption, prompt_lyrics(plan.song), plan.block) for plan in plans],
            [self.grammars.codes(count_codes(plan.song.seconds)) for plan in plans],
            [plan.song.seed for plan in plans],
            prompts.unconditional_prompt(self.config.negative),
        )
        first = self.model.vocabulary.first_code
        codes = [tuple(token - first for token in output[:-1]) for output in outputs]
        return [replace(plan, codes=song_codes) for plan, song_codes in zip(plans, codes, strict=True)]

    def describe(self, codes: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[SongDescription]:
        """Descriptions of each song's codes, with lyrics; ``seeds`` are those of the sampling.

        Raises:
            ValueError: the language model cannot describe codes: its config records a captioning share of 0.
        """
        mix = getattr(self.model.network.config, EXAMPLE_MIX_KEY, None)
        if mix and not mix.get("listen"):
            raise ValueError(
                f"planner.path={self.config.path}: was not trained to describe codes; name a model that was, or train "
                "it with task.example_mix.captioning above 0"
            )
        known = [{"duration": round(len(song) / CODES_PER_SECOND)} if song else {} for song in codes]
        outputs = self._generate(
            [prompts.understanding_prompt(write_codes(song) or prompts.NO_USER_INPUT) for song in codes],
            [self.grammars.description(fields) for fields in known],
            seeds,
        )
        parsed = [prompts.parse_output(self.model.vocabulary.decode(output)) for output in outputs]
        return [
            SongDescription(
                fill_open_fields(Song(lyrics=output.lyrics, seed=seed), output.metadata),
                str(output.metadata.get("genres", "")),
            )
            for seed, output in zip(seeds, parsed, strict=True)
        ]

    def _generate(
        self,
        inputs: Sequence[prompts.ChatPrompt],
        matchers: Sequence[GrammarMatcher],
        seeds: Sequence[int],
        negative: prompts.ChatPrompt | None = None,
    ) -> list[list[int]]:
        if not inputs:
            return []
        encode = self.model.vocabulary.encode
        return self.model.generate(
            [encode(prompt.text) for prompt in inputs],
            matchers,
            song_generators(seeds),
            self.config.decoding,
            [encode(negative.text)] * len(inputs) if negative else None,
        )

    def _in_batches(self, step: Callable[[Sequence[T]], list[SongPlan]], items: Sequence[T]) -> list[SongPlan]:
        size = self.config.batch_size
        return [plan for start in range(0, len(items), size) for plan in step(items[start : start + size])]


def plan_metadata(song: Song) -> dict[str, Any]:
    """The fields of ``song`` by the plan's keys; ``None`` where it is open."""
    return {
        "bpm": song.bpm,
        "caption": song.caption or None,
        "duration": None if song.seconds is None else max(1, int(song.seconds)),
        "keyscale": song.key,
        "language": None if song.language == "unknown" else song.language,
        "timesignature": song.time_signature,
    }


def fill_open_fields(song: Song, metadata: Mapping[str, int | str]) -> Song:
    """``song`` with the values of ``metadata``, from a parsed output, in the fields that it leaves open.

    Differs from upstream, which loses the language (it is stored under one name and looked up under another).
    """
    plain = {name: _unquoted(value) for name, value in metadata.items()}
    duration, bpm, language = plain.get("duration"), plain.get("bpm"), plain.get("language")
    key, time_signature = (
        None if plain.get(name) is None else str(plain[name]) for name in ("keyscale", "timesignature")
    )
    return validate_song(
        replace(
            song,
            caption=song.caption or str(plain.get("caption", "")),
            language=str(language) if song.language == "unknown" and language is not None else song.language,
            seconds=float(duration) if song.seconds is None and isinstance(duration, int) else song.seconds,
            bpm=bpm if song.bpm is None and isinstance(bpm, int) else song.bpm,
            key=song.key or key,
            time_signature=song.time_signature or time_signature,
        )
    )


def count_codes(seconds: float | None) -> int:
    """Number of codes of a song of ``seconds``; a last, incomplete code counts."""
    if seconds is None:
        raise ValueError("song.seconds: not given, and codes need a length; give one, or add planner.codes=false")
    return max(1, math.ceil(round(seconds * CODES_PER_SECOND, 3)))


def prompt_lyrics(song: Song) -> str:
    """The lyrics as a prompt has them; the tag of instrumental songs if there are none."""
    return song.lyrics if song.lyrics.strip() else INSTRUMENTAL


def _unquoted(value: int | str) -> int | str:
    """A value without its YAML quotes, unless there is nothing between them."""
    if not isinstance(value, str) or value[:1] not in {"'", '"'}:
        return value
    try:
        return str(yaml.safe_load(value)).strip() or value
    except yaml.YAMLError:
        return value


def _limit_seconds(rules: Rules, lengths: Lengths) -> Rules:
    low = max(rules.seconds[0], math.ceil(lengths.min_seconds))
    high = min(rules.seconds[1], math.floor(lengths.max_seconds))
    if low > high:
        raise ValueError(
            f"planner.rules.seconds={list(rules.seconds)}: the checkpoint generates {lengths.min_seconds:g} to "
            f"{lengths.max_seconds:g} s; let them overlap"
        )
    return replace(rules, seconds=(low, high))
