"""Evaluation of a planner: does it plan what captions imply, and do its codes carry tempo and key of the plan?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from acestep.evaluation.distributed import Ranks
from acestep.evaluation.metrics.key import read_key
from acestep.evaluation.prompts import EvaluationPrompt, PromptSource
from acestep.evaluation.results import SONG_FIELDS, Results, merge_results
from acestep.evaluation.statistics import SEED, paired_test
from acestep.evaluation.suite import Evaluation, check_counts, load_prompts
from acestep.files import read_json, write_json
from acestep.flow.sampler import Sampler
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.decoding import Decoding
from acestep.planner.grammar import Rules
from acestep.planner.init import ScratchInit
from acestep.planner.plan import Planner, PlannerConfig, SongPlan, count_codes, plan_metadata
from acestep.songs import Request, Song
from acestep.synth.world import BEAT_FRAMES, FRAME_RATE, TONICS
from acestep.weights.checkpoint import Lengths

IMPLIED_FIELDS = ("bpm", "keyscale", "timesignature", "language")
"""Fields of a plan that a caption and lyrics can imply."""
ADHERENCE = ("adherence.tempo", "adherence.key")
RANDOM_CODES, RANDOM_BATCH_SIZE = 1000, 500


class PlannerSpec(Protocol):
    """Configuration of a planner."""

    def load(self, device: torch.device | str, dtype: torch.dtype, lengths: Lengths | None) -> Planner: ...


def planning_request(song: Song) -> Request:
    """Caption, lyrics, duration and seed of ``song``, without the metadata that are to be planned."""
    return Request(caption=song.caption, lyrics=song.lyrics, seconds=song.seconds, seed=song.seed)


def field_matches(songs: Sequence[Song], plans: Sequence[SongPlan]) -> dict[str, list[float]]:
    """By field, 1.0 for each plan that equals its song in it and 0.0 for the others; songs without it are absent."""
    matches: dict[str, list[float]] = {}
    for song, plan in zip(songs, plans, strict=True):
        expected, planned = plan_metadata(song), plan_metadata(plan.song)
        for name in IMPLIED_FIELDS:
            if expected[name] is not None:
                matches.setdefault(name, []).append(float(planned[name] == expected[name]))
    return matches


def rule_violations(plan: SongPlan, rules: Rules, codes: int) -> list[str]:
    """Fields of ``plan`` that break ``rules`` or are no codes of a codebook of size ``codes``; empty if valid."""
    planned = plan_metadata(plan.song)
    invalid = [name for name, value in planned.items() if (allowed := rules.values(name)) and value not in allowed]
    invalid += ["caption"] * (not plan.song.caption)
    invalid += ["count of codes"] * (len(plan.codes) != count_codes(plan.song.seconds))
    return invalid + ["codes"] * (not all(0 <= code < codes for code in plan.codes))


def count_valid_plans(count: int, seed: int = SEED) -> int:
    """How many of ``count`` plans are valid that a randomly initialised language model samples at temperature 2."""
    model = ScratchInit(hidden_size=32, intermediate_size=64, num_hidden_layers=1)(
        ["a song with piano", "[verse]\nla le"], RANDOM_CODES, torch.Generator().manual_seed(seed)
    )
    model.network.eval()
    rules = Rules(seconds=(1, 2), caption_tokens=3)
    decoding = Decoding(temperature=2.0, top_p=1.0, guidance=1.0)
    planner = Planner(model, PlannerConfig(path="", batch_size=RANDOM_BATCH_SIZE, rules=rules, decoding=decoding))
    plans = planner.plan([Song(seed=index) for index in range(count)])
    return sum(not rule_violations(plan, rules, RANDOM_CODES) for plan in plans)


@dataclass(frozen=True, kw_only=True)
class FixedPrompts:
    """Prompts from memory, as a :class:`PromptSource`."""

    prompts: Sequence[EvaluationPrompt]

    def load(self, lengths: Lengths) -> list[EvaluationPrompt]:
        return list(self.prompts)


@dataclass(frozen=True, kw_only=True)
class PlannerStudy:
    """Plans every prompt, and generates each song with and without the plan's codes.

    Three conditions: ``asked``, the request alone; ``codes``, the request with the plan's codes; ``told``, the plan's
    caption, lyrics and metadata without codes. The difference in tempo and key between the first two is due to the
    codes.

    Attributes:
        prompts: songs of the micro world whose captions imply tempo and key in words that the DiT was not trained on.
        metrics: as in :class:`Evaluation`; ``adherence`` must be among them.
        planner: the planner to evaluate.
        random_plans: plans to sample from a randomly initialised language model at temperature 2; counts how many the
            grammar makes valid. 0 for none.
        batch_size: songs generated at a time.
        songs_in_report: prompts with players in the report.
        available_only: leave out, and name, metrics whose weights are missing.
    """

    prompts: PromptSource
    metrics: Mapping[str, Any]
    planner: PlannerSpec
    random_plans: int = 2000
    batch_size: int = 16
    songs_in_report: int = 8
    available_only: bool = False

    def __post_init__(self) -> None:
        check_counts(self, random_plans=0, batch_size=1, songs_in_report=0)

    def __call__(self, pipeline: Pipeline, sampler: Sampler, out: str | Path, ranks: Ranks | None = None) -> Results:
        """As :meth:`Evaluation.__call__`; the summary has an additional part, ``planner``."""
        ranks = ranks or Ranks()
        prompts = load_prompts(self.prompts, pipeline.lengths, ranks)
        requests = [planning_request(prompt.song) for prompt in prompts]
        plans, valid = self._plan(pipeline, requests, Path(out) / "plans.json", ranks)
        conditions: dict[str, Sequence[Song]] = {
            "asked": requests,
            "codes": [replace(song, codes=plan.codes) for song, plan in zip(requests, plans, strict=True)],
            "told": [plan.song for plan in plans],
        }
        truths = [planned_truth(prompt.truth, plan.song) for prompt, plan in zip(prompts, plans, strict=True)]
        evaluation = Evaluation(
            prompts=self.prompts,
            metrics=self.metrics,
            batch_size=self.batch_size,
            available_only=self.available_only,
        )
        by_condition, adherence = {}, {}
        for name, songs in conditions.items():
            changed = [
                replace(prompt, song=song, truth=truth)
                for prompt, song, truth in zip(prompts, songs, truths, strict=True)
            ]
            results = replace(evaluation, prompts=FixedPrompts(prompts=changed))(pipeline, sampler, out, ranks)
            by_condition[name], adherence[name] = results, tempo_and_key(results)
        both = sorted(adherence["codes"].keys() & adherence["asked"].keys())
        pair = [adherence["codes"][name] for name in both], [adherence["asked"][name] for name in both]
        matches = field_matches([prompt.song for prompt in prompts], plans)
        block = {
            "metadata_accuracy": _mean_of([value for values in matches.values() for value in values]),
            "metadata": {name: _mean_of(values) for name, values in matches.items()},
            "with_codes": _mean_of(list(adherence["codes"].values())),
            "without_codes": _mean_of(list(adherence["asked"].values())),
            "difference_ci95": paired_test(*pair)["ci95"],
            "told_in_words": _mean_of(list(adherence["told"].values())),
            "n": len(both),
            f"valid_of_{self.random_plans}": valid,
        }
        return replace(merge_results(by_condition, "arm"), extra={"planner": block})

    def _plan(
        self, pipeline: Pipeline, requests: Sequence[Request], path: Path, ranks: Ranks
    ) -> tuple[list[SongPlan], int]:
        """The plans, and how many random ones are valid; the first rank writes them, the others read them."""
        if not ranks.rank:
            weight = next(pipeline.network.parameters())
            plans = self.planner.load(weight.device, torch.float32, pipeline.lengths).plan(requests)
            songs = [{name: getattr(plan.song, name) for name in SONG_FIELDS} for plan in plans]
            valid = count_valid_plans(self.random_plans) if self.random_plans else 0
            write_json(path, {"songs": songs, "codes": [plan.codes for plan in plans], "valid": valid})
        ranks.barrier()
        saved = read_json(path)
        lines = zip(requests, saved["songs"], saved["codes"], strict=True)
        return [SongPlan(song, replace(song, **fields), tuple(codes)) for song, fields, codes in lines], saved["valid"]


def planned_truth(truth: str, song: Song) -> str:
    """``truth``, JSON as in :class:`EvaluationPrompt`, with the tempo and key of a planned song."""
    changed = json.loads(truth)
    if bpm := song.bpm:
        changed["beat_frames"] = min(BEAT_FRAMES, key=lambda beat: abs(60 * FRAME_RATE / beat - bpm))
    if key := read_key(song.key):
        changed |= {"tonic": TONICS[key.tonic], "mode": key.mode}
    return json.dumps(changed)


def tempo_and_key(results: Results) -> dict[str, float]:
    """Mean of tempo and key adherence, by prompt."""
    columns = [results.values(name, results.points[0]) for name in ADHERENCE]
    return {name: _mean_of([values[name] for values in columns]) for name in columns[0]}


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)
