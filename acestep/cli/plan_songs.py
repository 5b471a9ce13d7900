"""Songs planned by a language model before they are made: filled in, shown, and open to a person's edits."""

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

from acestep.cli.entry import Entry, read_record, song_of
from acestep.config.sampler import describe
from acestep.files import atomic
from acestep.memory import open_base
from acestep.models.acestep import AceStepConfig
from acestep.pipeline.build import named_dtype
from acestep.planner.plan import Plan, Planner, PlannerConfig
from acestep.songs.checks import checked_request
from acestep.songs.lists import request_of
from acestep.songs.metadata import LANGUAGES
from acestep.songs.song import Request, shown
from acestep.weights.checkpoint import Checkpoint, Lengths
from acestep.weights.hub import fetch, is_hub_id
from acestep.weights.open import find_folder, named_by

WORDS = ("caption", "lyrics", "language", "seconds", "bpm", "key", "time_signature")
"""What a plan says of a song beside its codes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Planning(PlannerConfig):
    """What fills in the songs of a command that start from no recording, and writes their codes.

    Args:
        edit: write each plan to NAME.plan.yaml and stop; the same command again goes on from what the files say then.
    """

    edit: bool = False

    def __call__(
        self, entries: Sequence[Entry], settings: dict[str, Any], tell: Callable[[str], None], anew: bool = False
    ) -> None:
        """Plan what is to be made. A song whose sidecar holds this very plan is not planned again, unless ``anew``."""
        checkpoint = open_base(settings["weights"])
        blank, written = [], []
        for entry in entries:
            if entry.goes_on and entry.request.task == "text2music" and not entry.request.codes:
                self._begin(entry, anew, checkpoint.lengths)
                if entry.plan and entry.goes_on:
                    (written if self._has_file(entry) else blank).append(entry)
        if blank or (written and self.codes):
            logger.info("planning with %s: songs: %d", self.path, len(blank) + len(written))
            self._write(blank, written, self._load(settings, checkpoint))
            torch.cuda.empty_cache()  # the planner is gone by now, and memory=auto asks what is free
        for entry in (entry for entry in [*blank, *written] if entry.goes_on):
            entry.request = replace(entry.plan.song, codes=entry.plan.codes)
            tell(f"planned  {entry.name}: {in_words(entry.request)}")
        for entry in (entry for entry in blank if self.edit and entry.goes_on):
            entry.waits = True
            tell(f"edit     {_write_plan(entry)}, then give the same command again")

    def _begin(self, entry: Entry, anew: bool, lengths: Lengths) -> None:
        """Take up what there is of a plan: a file that a person may have edited, a song's sidecar, or nothing yet."""
        try:
            asked = checked_request(entry.request)
            if asked.seconds is not None:
                lengths.check(asked.seconds)
            by = {key: value for key, value in describe(self).items() if key not in ("edit", "batch_size")}
            entry.planned = {"by": by, "asked": asdict(asked)}
            entry.plan = self._read_plan(asked, entry.out, lengths) if self._has_file(entry) else Plan(asked, asked)
        except ValueError as error:
            entry.fails(error)
            return
        record = {} if anew or self._has_file(entry) else read_record(entry.out)
        if record.get("planned") == json.loads(json.dumps(entry.planned)):
            entry.request, entry.plan = song_of(record["settings"]["song"]), None

    def _write(self, blank: Sequence[Entry], written: Sequence[Entry], planner: Planner) -> None:
        _in_batches(blank, self.batch_size, lambda plans: planner.fill([plan.song for plan in plans]))
        if self.codes:
            _in_batches(written if self.edit else blank, self.batch_size, planner.write_codes)

    def _has_file(self, entry: Entry) -> bool:
        return self.edit and plan_file(entry.out).exists()

    def _read_plan(self, asked: Request, out: Path, lengths: Lengths) -> Plan:
        file = plan_file(out)
        try:
            said = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"planner.edit: {file} is not YAML ({error}); mend it, or remove it") from error
        if not isinstance(said, dict) or said.pop("asked", None) != _mark(asdict(asked)):
            raise ValueError(f"planner.edit: {file} is the plan of another request; remove it to plan anew")
        try:
            edited = request_of(said, file.parent)
            if other := sorted(said.keys() - WORDS):
                raise ValueError(f"song.{other[0]}: a plan says {', '.join(WORDS)} alone; remove it")
            song = checked_request(replace(asked, **{key: getattr(edited, key) for key in WORDS}))
            if song.seconds is not None:
                lengths.check(song.seconds)
        except ValueError as error:
            raise ValueError(f"planner.edit: {file}: {error}") from error
        # Codes are asked for in the words of the request, unless a person has changed those.
        is_worded = asked.caption and not self.rewrite_caption
        return Plan(replace(asked, caption=song.caption) if is_worded else asked, song)

    def _load(self, settings: dict[str, Any], checkpoint: Checkpoint) -> Planner:
        config = replace(self, path=str(find_language_model(self.path, settings["weights"])))
        device, dtype = torch.device(settings["device"]), named_dtype(settings["dtype"])
        planner = config.load(device, dtype, checkpoint.lengths)
        written = planner.model.vocabulary.codes
        known = math.prod(AceStepConfig.from_dict(checkpoint.network_config).fsq_input_levels)
        if self.codes and written > known:
            raise ValueError(
                f"planner.path={self.path}: writes {written} codes, and weights={settings['weights']} know {known}; "
                "add planner.codes=false, or name the planner of these weights"
            )
        return planner


def find_language_model(path: str, weights: str) -> Path:
    """The folder at ``path``; else one of its name in the folder of ``weights`` or beside it; else from the Hub."""
    home = find_folder(weights)
    for folder in (Path(path), home / Path(path).name, home.parent / Path(path).name):
        if folder.is_dir():
            return folder
    with named_by("planner.path"):
        return fetch(path) if is_hub_id(path) else Path(path)


def plan_file(out: Path) -> Path:
    """Where a plan waits for a person."""
    return out.with_suffix(".plan.yaml")


def in_words(song: Request) -> str:
    """What was planned, in a line."""
    parts = {
        "bpm": f"{song.bpm} bpm",
        "key": song.key,
        "time_signature": f"{song.time_signature} beats in a bar",
        "seconds": f"{song.seconds or 0:g} s",
        "caption": shown(song.caption),
    }
    said = [text for key, text in parts.items() if getattr(song, key)]
    if song.language != "unknown":
        said.insert(-1, LANGUAGES[song.language])
    return "; ".join([*said, *([f"{len(song.codes)} codes"] if song.codes else [])])


def _in_batches(entries: Sequence[Entry], size: int, make: Callable[[list[Plan]], list[Plan]]) -> None:
    """Advance the plans of ``entries``; where one of a batch fails, the others are made one by one."""
    for start in range(0, len(entries), size):
        group = [entry for entry in entries[start : start + size] if entry.goes_on]
        try:
            made = make([entry.plan for entry in group]) if group else []
        except ValueError as error:
            if len(group) == 1:
                group[0].fails(error)
            else:
                _in_batches(group, 1, make)
            continue
        for entry, plan in zip(group, made, strict=True):
            entry.plan = plan


def _write_plan(entry: Entry) -> Path:
    file = plan_file(entry.out)
    said = {key: getattr(entry.request, key) for key in WORDS} | {"asked": _mark(entry.planned["asked"])}
    with atomic(file) as aside:
        head = "# Change what you like, but for the last line, which tells whose plan this is.\n"
        aside.write_text(head + yaml.dump(said, Dumper=_Dumper, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file


def _mark(asked: dict[str, Any]) -> str:
    """What tells a request from others."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


class _Dumper(yaml.SafeDumper):
    """Lyrics line by line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
