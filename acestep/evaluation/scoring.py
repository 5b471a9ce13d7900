"""All metrics over clips, each clip heard once by each ear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from acestep.audio.audio import Audio
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.cache import Ear, Heard, HearingStore, each_song
from acestep.evaluation.metrics.base import Scorer
from acestep.evaluation.prompts import Prompt
from acestep.evaluation.rows import Row
from acestep.evaluation.samples import Clip

Scores = dict[str, float]

SHUFFLES = 2
"""Other prompts that each song is scored against for the shuffled control."""


class Scoring:
    """Scorers by the name that their columns get, sorted by what they compare a song with.

    Args:
        scorers: see :mod:`acestep.evaluation.metrics.base`.
        store: keeps what was heard.
        references: recordings that sets are compared with.
    """

    def __init__(self, scorers: Mapping[str, Scorer], store: HearingStore, references: Sequence[Path]) -> None:
        def with_method(method: str) -> dict[str, Any]:
            return {name: scorer for name, scorer in scorers.items() if hasattr(scorer, method)}

        self.songwise, self.setwise = with_method("score"), with_method("distance")
        self.pairwise, self.takewise = with_method("compare"), with_method("among")
        self.store = store
        self.references = references
        self.unheard: dict[str, dict[str, str]] = {}
        self._heard: dict[tuple[str, Path], Heard] = {}

    def unscorable(self, prompts: Sequence[Prompt], takes: int = 1) -> dict[str, str]:
        """Metrics that find nothing to compare with in these prompts, and why; they are left out from here on."""
        reasons = {
            name: "no prompt holds what it compares with"
            for name, scorer in self.songwise.items()
            if not any(scorer.applies(prompt) for prompt in prompts)
        }
        if not any(prompt.recording for prompt in prompts):
            reasons |= dict.fromkeys(self.pairwise, "no prompt has a recording to compare with")
        if takes < 2:
            reasons |= dict.fromkeys(self.takewise, "compares takes of a prompt; add eval.takes=2 or more")
        for name, scorer in {**self.setwise, **dict(filter(_learns_reference, self.songwise.items()))}.items():
            if not getattr(scorer, "statistics", "") and len(self.references) < 2:
                reasons[name] = "fewer than 2 reference recordings, and no reference statistics are given"
        for kind in (self.songwise, self.setwise, self.pairwise, self.takewise):
            for name in reasons.keys() & kind.keys():
                del kind[name]
        return reasons

    def prepare(self, ranks: Ranks) -> None:
        """Hear the reference recordings together, let every metric refuse itself on them, and learn its corpus."""
        for scorer, paths in self._known_recordings():
            each_song(partial(self._hear_recording, scorer.ear), ranks.share(paths), _is_pure(scorer))
        ranks.wait()
        for scorer in self.songwise.values():
            if hasattr(scorer, "check"):
                scorer.check([self._hear(scorer.ear, path) for path in self.references])
            if hasattr(scorer, "learn"):
                scorer.learn([self._hear(scorer.ear, path) for path in getattr(scorer, "corpus", self.references)])

    def keep_statistics(self, folder: Path) -> None:
        """Statistics of the reference, one file for each metric that can be given them again in its stead."""
        for name, scorer in self.setwise.items():
            if hasattr(scorer, "keep") and len(self.references) >= 2:
                scorer.keep(self._heard_references(scorer), folder / f"{name}.npz")

    def listen(self, clip: Clip, audio: Audio) -> None:
        """Let every ear that keeps no state hear a clip while it is in memory."""
        self.store.recall(clip.path, audio)
        self._hear_purely(clip)

    def hear(self, clips: Sequence[Clip], ranks: Ranks) -> None:
        """Let every ear hear this rank's share of the clips, for the store."""
        share = ranks.share([clip for clip in clips if not clip.excluded])
        each_song(self._hear_purely, share)
        for name, scorer in self._all.items():
            self._heard_of(name, scorer, share)

    def _hear_purely(self, clip: Clip) -> None:
        for name, scorer in self._all.items():
            if _is_pure(scorer):
                self._heard_of(name, scorer, [clip])

    def _hear_recording(self, ear: Ear, path: Path) -> Heard:
        try:
            return self._hear(ear, path)
        except ValueError as error:
            told = str(error).removeprefix(f"{path}: ")
            raise ValueError(f"recording {path}: {told}; mend it or take it out of its folder") from error

    def _known_recordings(self) -> Iterator[tuple[Any, Sequence[Path]]]:
        for name, scorer in self._all.items():
            if hasattr(scorer, "check") or not hasattr(scorer, "score") or _learns_reference((name, scorer)):
                yield scorer, self.references
            if hasattr(scorer, "corpus"):
                yield scorer, scorer.corpus

    @property
    def _all(self) -> dict[str, Any]:
        return {**self.songwise, **self.pairwise, **self.takewise, **self.setwise}

    def _heard_of(self, name: str, scorer: Any, clips: Sequence[Clip]) -> list[tuple[Clip, Heard]]:
        """Clips that ``scorer`` is about, with what it hears; why it cannot hear one is kept in ``unheard``."""
        found = []
        for clip in clips:
            if not getattr(scorer, "applies", _always)(clip.prompt):
                continue
            try:
                found.append((clip, self._hear(_ear(scorer, clip.prompt), clip.path)))
            except ValueError as error:
                self.unheard.setdefault(clip.key, {})[name] = str(error)
        return found

    def rows(self, clips: Sequence[Clip]) -> Iterator[Row]:
        """One row for each clip: its scores, and its scores against the words or recordings of other prompts."""
        made = [clip for clip in clips if not clip.excluded]
        scores: dict[str, Scores] = {clip.key: {} for clip in made}
        shuffled: dict[str, Scores] = {clip.key: {} for clip in made}
        self._score_songs(made, scores, shuffled)
        self._compare_pairs(made, scores, shuffled)
        self._compare_takes(made, scores)
        for name, scorer in self.setwise.items():
            self._heard_of(name, scorer, made)
        for clip in clips:
            yield Row(
                prompt=clip.prompt,
                take=clip.take,
                cell=clip.cell.label,
                path=None if clip.excluded else clip.path,
                excluded=clip.excluded,
                scores=scores.get(clip.key, {}),
                shuffled=shuffled.get(clip.key, {}),
                unheard=self.unheard.get(clip.key, {}),
            )

    def sets(self, clips: Sequence[Clip], rows: Sequence[Row]) -> dict[str, Scores]:
        """Distances of all clips together to the reference recordings, and totals over ``rows``, by metric."""
        found = {}
        for name, scorer in self.setwise.items():
            heard = self._heard_set(name, scorer, clips)
            if len(heard) >= 2:
                same_songs = clips[0].cell.sampler is None
                found[name] = scorer.distance(heard, self._heard_references(scorer), same_songs=same_songs)
        for name, scorer in self.songwise.items():
            scored = [own for row in rows if (own := _own(name, row.scores))]
            if hasattr(scorer, "total") and scored:
                found[name] = scorer.total(scored)
        return {name: values for name, values in found.items() if values}

    def halves(self, clips: Sequence[Clip]) -> dict[str, list[float]]:
        """Set distances of random halves of the songs, the same ones in every cell, by metric."""
        return {
            name: scorer.halved(self._heard_set(name, scorer, clips), self._heard_references(scorer))
            for name, scorer in self.setwise.items()
            if hasattr(scorer, "halved")
        }

    def _heard_set(self, name: str, scorer: Any, clips: Sequence[Clip]) -> list[Heard]:
        return [heard for _, heard in self._heard_of(name, scorer, [clip for clip in clips if not clip.excluded])]

    def _heard_references(self, scorer: Any) -> list[Heard]:
        return [self._hear(scorer.ear, path) for path in self.references]

    def _score_songs(self, made: Sequence[Clip], scores: dict[str, Scores], shuffled: dict[str, Scores]) -> None:
        for name, scorer in self.songwise.items():
            scored = self._heard_of(name, scorer, made)
            others = _others([clip.prompt for clip, _ in scored])
            for (clip, one), strangers in zip(scored, others, strict=True):
                try:
                    scores[clip.key] |= _named(name, scorer.score(one, clip.prompt))
                except ValueError as error:
                    self.unheard.setdefault(clip.key, {})[name] = str(error)
                    continue
                if getattr(scorer, "prompted", True):
                    shuffled[clip.key] |= _named(name, _mean([scorer.score(one, other) for other in strangers]))

    def _compare_pairs(self, made: Sequence[Clip], scores: dict[str, Scores], shuffled: dict[str, Scores]) -> None:
        for name, scorer in self.pairwise.items():
            pairs = self._heard_of(name, scorer, [clip for clip in made if clip.prompt.recording])
            recordings = [self._hear(scorer.ear, _recording(clip.prompt)) for clip, _ in pairs]
            by_prompt = dict(zip([clip.prompt.id for clip, _ in pairs], recordings, strict=True))
            others = _others([clip.prompt for clip, _ in pairs])
            for (clip, one), recording, strangers in zip(pairs, recordings, others, strict=True):
                scores[clip.key] |= _named(name, scorer.compare(one, recording))
                found = [scorer.compare(one, by_prompt[other.id]) for other in strangers]
                shuffled[clip.key] |= _named(name, _mean(found))

    def _compare_takes(self, made: Sequence[Clip], scores: dict[str, Scores]) -> None:
        for name, scorer in self.takewise.items():
            takes: dict[str, list[tuple[Clip, Heard]]] = {}
            for clip, heard in self._heard_of(name, scorer, made):
                takes.setdefault(clip.prompt.id, []).append((clip, heard))
            for same in takes.values():
                for place, (clip, heard) in enumerate(same):
                    others = [other for at, (_, other) in enumerate(same) if at != place]
                    if others:
                        scores[clip.key] |= _named(name, scorer.among(heard, others))

    def _hear(self, ear: Ear, recording: Path) -> Heard:
        key = ear.fingerprint, recording
        if key not in self._heard:
            self._heard[key] = self.store.hear(ear, recording)
        return self._heard[key]


def _is_pure(scorer: Any) -> bool:
    return bool(getattr(scorer.ear, "pure", False))


def _always(prompt: Prompt) -> bool:
    return True


def _learns_reference(named: tuple[str, Any]) -> bool:
    """Whether a scorer is handed the reference recordings to learn."""
    return hasattr(named[1], "learn") and not hasattr(named[1], "corpus")


def _recording(prompt: Prompt) -> Path:
    assert prompt.recording is not None
    return prompt.recording


def _ear(scorer: Any, prompt: Prompt) -> Ear:
    """What must listen to a song of ``prompt``."""
    ear: Ear = scorer.ear_for(prompt) if hasattr(scorer, "ear_for") else scorer.ear
    return ear


def _others(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """For each song, prompts of other songs: those ahead of it by fixed strides, spread over the list."""
    n = len(prompts)
    strides = sorted({max(1, round(n * (k + 1) / (SHUFFLES + 1))) for k in range(SHUFFLES)})
    picked = [[prompts[(i + stride) % n] for stride in strides] for i in range(n)]
    return [[other for other in others if other.id != own.id] for own, others in zip(prompts, picked, strict=True)]


def _mean(scores: Sequence[Mapping[str, float]]) -> Scores:
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]} if scores else {}


def _named(metric: str, scores: Mapping[str, float]) -> Scores:
    return {f"{metric}.{name}": value for name, value in scores.items()}


def _own(metric: str, scores: Mapping[str, float]) -> Scores:
    """``metric``'s scores under its own names."""
    return {name.removeprefix(f"{metric}."): v for name, v in scores.items() if name.startswith(f"{metric}.")}
