"""Planning of songs by a language model before they are generated; plans can be edited by the user in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from acestep.cli.song_writer import SongJob, config_request, read_existing_sidecar
from acestep.config.sampler import to_config
from acestep.files import atomic
from acestep.pipeline.build import OpenedWeights, named_dtype
from acestep.planner.plan import Planner, PlannerConfig, SongPlan
from acestep.songs import Request
from acestep.songs.checks import validate_request
from acestep.songs.lists import parse_request
from acestep.songs.metadata import LANGUAGES
from acestep.songs.song import shorten
from acestep.weights.checkpoint import Lengths
from acestep.weights.hub import fetch, is_hub_id
from acestep.weights.open import find_folder, named_in_errors

TEXT_FIELDS = ("caption", "lyrics", "language", "seconds", "bpm", "key", "time_signature")
"""Fields of a plan beside its codes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Planning(PlannerConfig):
    """Fills in open fields and writes audio codes for the songs of a command that have no source recording.

    Args:
        edit: write each plan to NAME.plan.yaml and stop; the same command again continues with the edited files.
    """

    edit: bool = False

    def __call__(
        self, jobs: Sequence[SongJob], settings: dict[str, Any], opened: OpenedWeights, replan: bool = False
    ) -> None:
        """Plan the requests of ``jobs``. Plans in the sidecars of existing songs are reused, unless ``replan``."""
        new: list[SongJob] = []
        edited: list[SongJob] = []
        for job in jobs:
            if job.is_pending and job.request.task == "text2music" and not job.request.codes:
                self._start(job, replan, opened.checkpoint.lengths)
                if job.plan and job.is_pending:
                    (edited if self._has_file(job) else new).append(job)
        if new or (edited and self.codes):
            logger.info("planning with %s: songs: %d", self.path, len(new) + len(edited))
            planner = self._load_planner(settings, opened)
            _plan_batches(new, self.batch_size, lambda plans: planner.fill([plan.song for plan in plans]))
            if self.codes:
                _plan_batches(edited if self.edit else new, self.batch_size, planner.write_codes)
            del planner
            torch.cuda.empty_cache()  # memory=auto depends on the free memory
        for job in [*new, *edited]:
            if job.is_pending and job.plan:
                job.request = _as_request(job.plan)
                print(f"planned  {job.out.name}: {plan_text(job.request)}", flush=True)
        for job in new:
            if self.edit and job.is_pending:
                job.awaits_edit = True
                print(f"edit     {_write_plan(job)}, then run the same command again", flush=True)

    def _start(self, job: SongJob, replan: bool, lengths: Lengths) -> None:
        """Set the plan from an edited file, or the planned request from a sidecar, or else an empty plan."""
        try:
            request = _check_request(job.request, lengths)
            planner = {key: value for key, value in to_config(self).items() if key not in ("edit", "batch_size")}
            job.plan_record = {"by": planner, "asked": asdict(request)}
            job.plan = self._read_plan(request, job.out, lengths) if self._has_file(job) else SongPlan(request, request)
        except ValueError as error:
            job.fail(error)
            return
        sidecar = {} if replan or self._has_file(job) else read_existing_sidecar(job.out)
        if sidecar.get("planned") == json.loads(json.dumps(job.plan_record)):
            job.request, job.plan = config_request(sidecar["settings"]["song"]), None

    def _has_file(self, job: SongJob) -> bool:
        return self.edit and plan_file(job.out).exists()

    def _read_plan(self, request: Request, out: Path, lengths: Lengths) -> SongPlan:
        file = plan_file(out)
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"planner.edit: {file} is not YAML ({error}); correct it, or remove it") from error
        if not isinstance(values, dict) or values.pop("asked", None) != _request_hash(asdict(request)):
            raise ValueError(f"planner.edit: {file} is the plan of another request; remove it to plan again")
        try:
            edited = parse_request(values, file.parent)
            if other := sorted(values.keys() - TEXT_FIELDS):
                raise ValueError(f"song.{other[0]}: a plan has only {', '.join(TEXT_FIELDS)}; remove it")
            song = _check_request(replace(request, **{key: getattr(edited, key) for key in TEXT_FIELDS}), lengths)
        except ValueError as error:
            raise ValueError(f"planner.edit: {file}: {error}") from error
        # Codes are conditioned on the caption of the request, unless the user has edited it.
        keeps_caption = request.caption and not self.rewrite_caption
        return SongPlan(replace(request, caption=song.caption) if keeps_caption else request, song)

    def _load_planner(self, settings: dict[str, Any], opened: OpenedWeights) -> Planner:
        config = replace(self, path=str(find_language_model(self.path, settings["weights"])))
        device, dtype = torch.device(settings["device"]), named_dtype(settings["dtype"])
        planner = config.load(device, dtype, opened.checkpoint.lengths)
        planner_codes, tokenizer_codes = planner.model.vocabulary.codes, math.prod(opened.config.fsq_input_levels)
        if self.codes and planner_codes > tokenizer_codes:
            raise ValueError(
                f"planner.path={self.path}: writes {planner_codes} codes, and weights={settings['weights']} have "
                f"{tokenizer_codes}; add planner.codes=false, or name the planner of these weights"
            )
        return planner


def find_language_model(path: str, weights: str) -> Path:
    """The folder ``path``; else one of its name in the folder of ``weights`` or beside it; else from the Hub."""
    home = find_folder(weights)
    for folder in (Path(path), home / Path(path).name, home.parent / Path(path).name):
        if folder.is_dir():
            return folder
    with named_in_errors("planner.path"):
        return fetch(path) if is_hub_id(path) else Path(path)


def plan_file(out: Path) -> Path:
    """The file of the plan of ``out``, for the user to edit."""
    return out.with_suffix(".plan.yaml")


def plan_text(song: Request) -> str:
    """The plan in one line."""
    parts = [
        f"{song.bpm} bpm" if song.bpm else "",
        song.key or "",
        f"{song.time_signature} beats per bar" if song.time_signature else "",
        f"{song.seconds:g} s" if song.seconds else "",
        LANGUAGES[song.language] if song.language != "unknown" else "",
        shorten(song.caption),
        f"{len(song.codes)} codes" if song.codes else "",
    ]
    return "; ".join(filter(None, parts))


def _check_request(request: Request, lengths: Lengths) -> Request:
    request = validate_request(request)
    if request.seconds is not None:
        lengths.check(request.seconds)
    return request


def _as_request(plan: SongPlan) -> Request:
    assert isinstance(plan.song, Request)
    return replace(plan.song, codes=plan.codes)


def _plan_batches(jobs: Sequence[SongJob], size: int, step: Callable[[Sequence[SongPlan]], Sequence[SongPlan]]) -> None:
    """Apply ``step`` to the plans of ``jobs`` in batches; after an error, to those of the batch one by one."""
    for start in range(0, len(jobs), size):
        batch = [job for job in jobs[start : start + size] if job.is_pending]
        try:
            plans = step([job.plan for job in batch if job.plan]) if batch else []
        except ValueError as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                _plan_batches(batch, 1, step)
            continue
        for job, plan in zip(batch, plans, strict=True):
            job.plan = plan


def _write_plan(job: SongJob) -> Path:
    file = plan_file(job.out)
    assert job.plan_record is not None
    values = {key: getattr(job.request, key) for key in TEXT_FIELDS}
    values["asked"] = _request_hash(job.plan_record["asked"])
    with atomic(file) as aside:
        comment = "# Edit any field but the last, which identifies the request of this plan.\n"
        text = yaml.dump(values, Dumper=_LyricsDumper, allow_unicode=True, sort_keys=False)
        aside.write_text(comment + text, encoding="utf-8")
    return file


def _request_hash(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]


class _LyricsDumper(yaml.SafeDumper):
    """Writes strings of several lines as literal blocks."""


_LyricsDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
