"""Does a planner plan what a caption implies, and do its codes make the song of its plan?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from acestep.evaluation.distributed import Ranks
from acestep.evaluation.joined import joined
from acestep.evaluation.prompts import Prompt, PromptSource
from acestep.evaluation.results import SEED, Results, paired
from acestep.evaluation.rows import SONG_FIELDS
from acestep.evaluation.suite import Evaluation, check_counts, load_prompts
from acestep.files import read_json, write_json
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.begin import Scratch
from acestep.planner.decoding import Decoding
from acestep.planner.document import Rules
from acestep.planner.plan import Plan, Planner, PlannerConfig, count_codes, metadata
from acestep.synth.world import BEAT_FRAMES, FRAME_RATE, MODES, TONICS
from acestep.types import Request, Song
from acestep.weights.checkpoint import Lengths

JUDGED = ("bpm", "keyscale", "timesignature", "language")
"""Fields of a plan that a caption and lyrics can imply."""
KEPT = ("adherence.tempo", "adherence.key")
SHARPS = {"Db": "C#", "Eb": "D#", "Gb": "F#", "Ab": "G#", "Bb": "A#", "Cb": "B", "Fb": "E", "E#": "F", "B#": "C"}
WILD_CODES, WILD_BATCH = 1000, 500


class PlannerSpec(Protocol):
    """Configuration of a planner."""

    def load(self, device: torch.device | str, dtype: torch.dtype, lengths: Lengths | None) -> Planner:
        """The planner."""
        ...


def planned_right(planner: Planner, songs: Sequence[Song]) -> dict[str, list[float]]:
    """Whether each field that a song has is planned as it is, from caption, lyrics and length alone."""
    return compared(songs, planner.fill([asked(song) for song in songs]))


def asked(song: Song) -> Request:
    """What is told of ``song`` where its metadata are to be planned."""
    return Request(caption=song.caption, lyrics=song.lyrics, seconds=song.seconds, seed=song.seed)


def compared(songs: Sequence[Song], plans: Sequence[Plan]) -> dict[str, list[float]]:
    """Field by field, whether each plan says what its song is."""
    right: dict[str, list[float]] = {}
    for song, plan in zip(songs, plans, strict=True):
        wanted, planned = metadata(song), metadata(plan.song)
        for name in JUDGED:
            if wanted[name] is not None:
                right.setdefault(name, []).append(float(planned[name] == wanted[name]))
    return right


def flaws(plan: Plan, rules: Rules, codes: int) -> list[str]:
    """What of ``plan`` breaks ``rules``, or is no code of a tokenizer of ``codes``; empty for a whole plan."""
    told = metadata(plan.song)
    wrong = [name for name, value in told.items() if (allowed := rules.values(name)) and value not in allowed]
    wrong += ["caption"] * (not plan.song.caption)
    wrong += ["count of codes"] * (len(plan.codes) != count_codes(plan.song.seconds))
    return wrong + ["codes"] * (not all(0 <= code < codes for code in plan.codes))


def valid_plans(count: int, seed: int = SEED) -> int:
    """How many of ``count`` plans by a new language model of random weights, at temperature 2, are whole."""
    model = Scratch(hidden_size=32, intermediate_size=64, num_hidden_layers=1)(
        ["a song with piano", "[verse]\nla le"], WILD_CODES, torch.Generator().manual_seed(seed)
    )
    model.network.eval()
    rules = Rules(seconds=(1, 2), caption_tokens=3)
    decoding = Decoding(temperature=2.0, top_p=1.0, guidance=1.0)
    wild = Planner(model, PlannerConfig(path="", batch_size=WILD_BATCH, rules=rules, decoding=decoding))
    return sum(not flaws(plan, rules, WILD_CODES) for plan in wild.plan([Song(seed=index) for index in range(count)]))


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Prompts that are there already."""

    prompts: Sequence[Prompt]

    def load(self, lengths: Lengths) -> list[Prompt]:
        """Themselves."""
        return list(self.prompts)


@dataclass(frozen=True, kw_only=True)
class PlannerStudy:
    """Plans prompts, and makes each song with the plan's codes and without.

    ``asked`` hears the words of the request alone, ``codes`` the plan's codes beside them: what tempo and key differ by
    between the two, the codes brought. ``told`` hears what the plan says in words, as songs that are planned without
    codes do.

    Attributes:
        prompts: songs of the micro world whose captions imply tempo and key in words that the DiT does not know.
        metrics: as in :class:`Evaluation`; ``adherence`` must be among them.
        planner: who plans.
        wild: plans by a random language model at temperature 2, of which the whole ones are counted; 0 for none.
        batch_size: songs made at a time.
        songs_in_report: prompts with players in the report.
        available_only: leave out, and name, metrics whose weights are missing.
    """

    prompts: PromptSource
    metrics: Mapping[str, Any]
    planner: PlannerSpec
    wild: int = 2000
    batch_size: int = 16
    songs_in_report: int = 8
    available_only: bool = False

    def __post_init__(self) -> None:
        check_counts(self, wild=0, batch_size=1, songs_in_report=0)

    def __call__(self, pipeline: Pipeline, sampler: Sampler, out: str | Path, ranks: Ranks | None = None) -> Results:
        """As :meth:`Evaluation.__call__`; the summary's ``planner`` is this study's own."""
        ranks = ranks or Ranks()
        prompts = load_prompts(self.prompts, pipeline.lengths, ranks)
        requests = [asked(prompt.song) for prompt in prompts]
        plans, wild = self._planned(pipeline, requests, Path(out) / "plans.json", ranks)
        right = compared([prompt.song for prompt in prompts], plans)
        arms = {
            "asked": requests,
            "codes": [replace(song, codes=plan.codes) for song, plan in zip(requests, plans, strict=True)],
            "told": [plan.song for plan in plans],
        }
        found = {}
        for name, songs in arms.items():
            renewed = [
                replace(prompt, song=song, truth=truth_of(prompt.truth, plan.song))
                for prompt, song, plan in zip(prompts, songs, plans, strict=True)
            ]
            evaluation = Evaluation(
                prompts=Fixed(prompts=renewed),
                metrics=self.metrics,
                batch_size=self.batch_size,
                available_only=self.available_only,
            )
            found[name] = evaluation(pipeline, sampler, out, ranks)
        kept = {name: keeping(results) for name, results in found.items()}
        both = sorted(kept["codes"].keys() & kept["asked"].keys())
        pair = [kept["codes"][name] for name in both], [kept["asked"][name] for name in both]
        every = [value for values in right.values() for value in values]
        block = {
            "metadata_accuracy": sum(every) / len(every),
            "metadata": {name: sum(values) / len(values) for name, values in right.items()},
            "with_codes": _mean(kept["codes"]),
            "without_codes": _mean(kept["asked"]),
            "difference_ci95": paired(*pair)["ci95"],
            "told_in_words": _mean(kept["told"]),
            "n": len(both),
            f"valid_of_{self.wild}": wild,
        }
        return replace(joined(found, "arm"), blocks={"planner": block})

    def _planned(
        self, pipeline: Pipeline, requests: Sequence[Request], path: Path, ranks: Ranks
    ) -> tuple[list[Plan], int]:
        """The plans, and how many wild ones are whole: the first rank plans, and the others read what it wrote."""
        if not ranks.rank:
            weight = next(pipeline.network.parameters())
            plans = self.planner.load(weight.device, torch.float32, pipeline.lengths).plan(requests)
            said = [{name: getattr(plan.song, name) for name in SONG_FIELDS} for plan in plans]
            wild = valid_plans(self.wild) if self.wild else 0
            write_json(path, {"songs": said, "codes": [plan.codes for plan in plans], "valid": wild})
        ranks.wait()
        found = read_json(path)
        told = zip(requests, found["songs"], found["codes"], strict=True)
        return [Plan(song, replace(song, **words), tuple(codes)) for song, words, codes in told], found["valid"]


def truth_of(truth: str, song: Song) -> str:
    """The truth that a song of a plan has: its own tempo and key, the rest as in ``truth``."""
    tonic, _, mode = (song.key or "").replace("♯", "#").replace("♭", "b").partition(" ")
    told = json.loads(truth)
    if song.bpm:
        told["beat_frames"] = min(BEAT_FRAMES, key=lambda beat: abs(60 * FRAME_RATE / beat - song.bpm))
    if SHARPS.get(tonic, tonic) in TONICS and mode in MODES:
        told |= {"tonic": SHARPS.get(tonic, tonic), "mode": mode}
    return json.dumps(told)


def keeping(results: Results) -> dict[str, float]:
    """Mean over tempo and key of whether each song has those of its plan, by prompt."""
    columns = [results.values(name, results.cells[0]) for name in KEPT]
    return {name: sum(values[name] for values in columns) / len(columns) for name in columns[0]}


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
