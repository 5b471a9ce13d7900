"""What ``evaluate.py`` does: a config to songs, numbers and a report in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import distributed

from acestep.cli.song_writer import machine, writable
from acestep.config.keys import EVALUATION, check_keys
from acestep.config.run import build
from acestep.config.run_dir import write_record
from acestep.config.sampler import build_sampler
from acestep.data.files import file_hash
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.files import digest
from acestep.evaluation.joined import joined, named_results
from acestep.evaluation.report.html import Part, title_of, write_report
from acestep.evaluation.report.wandb import log_to_wandb
from acestep.evaluation.results import Results
from acestep.pipeline.build import fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.weights.open import named_by

LONGEST_WAIT = timedelta(days=2)
"""For the rank with the slowest share."""


def measure(cfg: DictConfig) -> tuple[Results, Path] | None:
    """Evaluate what ``cfg`` describes; returns the results and the report's path, or nothing on all ranks but one."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    check_keys(settings, EVALUATION)
    out = Path(cfg.out)
    writable(out, out)
    evaluation = build(cfg.eval)
    others = named_results(settings["compare"])
    with ranks_of_environment() as ranks:
        results = _evaluated(evaluation, settings, out, ranks)
        if ranks.rank:
            return None
    write_record(out, cfg, {"weights_sha256": _hashed(settings), "prompts_sha256": prompts_hash(results)})
    results.write(out)
    name = results.setting.called("this")
    part = Part(results, compare=others, songs=evaluation.songs_in_report, name=name)
    report = write_report([part], out, title_of(results))
    if cfg.wandb:
        log_to_wandb(results, report, cfg.wandb)
    return results, report


def _evaluated(evaluation: Any, settings: Mapping[str, Any], out: Path, ranks: Ranks) -> Results:
    """Every checkpoint with every autoencoder on the same prompts and noise; one is loaded at a time."""
    where = machine(_own_device(settings["device"]), settings["dtype"])
    found = {}
    for name in _names(settings):
        pipeline = Pipeline.from_pretrained(name, **where, padding=settings["padding"], memory=settings["memory"])
        pipeline = replace(pipeline, compiled=settings["compile"])
        sampler = build_sampler(settings, pipeline.sampler)
        decoders = _names(settings, "autoencoder")
        heard = {one: evaluation(pipeline.with_autoencoder(one), sampler, out, ranks) for one in decoders}
        found[name] = _side_by_side(heard, "autoencoder") if heard else evaluation(pipeline, sampler, out, ranks)
    results = _side_by_side(found, "weights")
    return replace(results, setting=replace(results.setting, memory=settings["memory"]))


def _side_by_side(found: Mapping[str, Results], axis: str) -> Results:
    return joined(found, axis) if len(found) > 1 else next(iter(found.values()))


def prompts_hash(results: Results) -> str:
    """SHA-256 over every prompt's song and the bytes of its recording."""
    asked = {row.prompt.id: row.prompt for row in results.rows}
    parts = [f"{name} {asked[name].song!r} {_bytes_of(asked[name].recording)}" for name in sorted(asked)]
    return digest(*parts)


def _bytes_of(recording: Path | None) -> str:
    return file_hash(recording) if recording else ""


def _hashed(settings: Mapping[str, Any]) -> str:
    found = [fingerprint(name) for name in _names(settings)]
    with named_by("autoencoder"):
        found += [fingerprint(name) for name in _names(settings, "autoencoder")]
    return ", ".join(found)


def _names(settings: Mapping[str, Any], key: str = "weights") -> list[str]:
    """The checkpoints, in their order; none where there is no such setting."""
    value = settings[key]
    return value if isinstance(value, list) else [value] if value else []


def _own_device(device: str) -> str:
    """The GPU of this process, where several processes share a machine with several."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(local) % torch.cuda.device_count()}"


@contextmanager
def ranks_of_environment() -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), lambda: distributed.barrier())
    finally:
        distributed.destroy_process_group()
