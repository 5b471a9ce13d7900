"""``evaluate.py``: generates and scores songs, and writes a report to one folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import distributed

from acestep.cli.song_writer import check_writable, device_settings, plain_settings
from acestep.config import custom
from acestep.config.run import build
from acestep.config.run_dir import write_record
from acestep.config.sampler import override_sampler
from acestep.config.top_level import EVALUATE_KEYS, check_keys
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.hashing import digest
from acestep.evaluation.report.html import ReportSection, report_title, write_evaluation_report
from acestep.evaluation.report.wandb import log_to_wandb
from acestep.evaluation.results import Results, merge_results, named_results
from acestep.files import file_hash
from acestep.pipeline.build import weights_fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.weights.open import named_in_errors

BARRIER_TIMEOUT = timedelta(days=2)
"""Ranks wait this long for the slowest one."""


def run_evaluation(cfg: DictConfig) -> tuple[Results, Path] | None:
    """Run a composed ``evaluate.yaml``; returns results and report on the first rank, ``None`` on the others."""
    settings = plain_settings(cfg)
    check_keys(settings, EVALUATE_KEYS)
    out = Path(cfg.out)
    check_writable(out, out)
    evaluation = build(cfg.eval)
    others = named_results(settings["compare"])
    with environment_ranks() as ranks:
        if not ranks.rank:
            custom.keep_sources(out, settings, "out", has_results=(out / "clips").is_dir())
        results = _evaluate_all(evaluation, settings, out, ranks)
        if ranks.rank:
            return None
    write_record(out, cfg, {"weights_sha256": _weights_hashes(settings), "prompts_sha256": prompts_hash(results)})
    results.write(out)
    name = results.info.display_name("this")
    section = ReportSection(results, compare=others, songs=evaluation.songs_in_report, name=name)
    report = write_evaluation_report([section], out, report_title(results))
    if cfg.wandb:
        log_to_wandb(results, report, cfg.wandb)
    return results, report


def _evaluate_all(evaluation: Any, settings: Mapping[str, Any], out: Path, ranks: Ranks) -> Results:
    """Evaluate every checkpoint with every autoencoder on the same prompts and noise, one checkpoint in memory."""
    device = device_settings(_local_device(settings["device"]), settings["dtype"])
    by_weights = {}
    for name in _names(settings, "weights"):
        pipeline = Pipeline.from_pretrained(
            name, device["device"], device["dtype"], settings["padding"], settings["memory"]
        )
        pipeline = replace(pipeline, compiled=settings["compile"])
        sampler = override_sampler(settings, pipeline.sampler)
        by_autoencoder = {
            other: evaluation(pipeline.with_autoencoder(other), sampler, out, ranks)
            for other in _names(settings, "autoencoder")
        }
        if by_autoencoder:
            by_weights[name] = _merge(by_autoencoder, "autoencoder")
        else:
            by_weights[name] = evaluation(pipeline, sampler, out, ranks)
    results = _merge(by_weights, "weights")
    return replace(results, info=replace(results.info, memory=settings["memory"]))


def _merge(results: Mapping[str, Results], axis: str) -> Results:
    return merge_results(results, axis) if len(results) > 1 else next(iter(results.values()))


def prompts_hash(results: Results) -> str:
    """SHA-256 over every prompt's song and the bytes of its recording."""
    prompts = {row.prompt.id: row.prompt for row in results.rows}
    parts = [
        f"{name} {prompts[name].song!r} {file_hash(recording) if (recording := prompts[name].recording) else ''}"
        for name in sorted(prompts)
    ]
    return digest(*parts)


def _weights_hashes(settings: Mapping[str, Any]) -> str:
    hashes = [weights_fingerprint(name) for name in _names(settings, "weights")]
    with named_in_errors("autoencoder"):
        hashes += [weights_fingerprint(name) for name in _names(settings, "autoencoder")]
    return ", ".join(hashes)


def _names(settings: Mapping[str, Any], key: str) -> list[str]:
    """The checkpoints under ``key``, which may be one, a list or null."""
    value = settings[key]
    return value if isinstance(value, list) else [value] if value else []


def _local_device(device: str) -> str:
    """The GPU of this rank, on a machine with several ranks."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


@contextmanager
def environment_ranks() -> Iterator[Ranks]:
    """The rank of this process under torchrun; one rank without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    distributed.init_process_group("gloo", timeout=BARRIER_TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), lambda: distributed.barrier())
    finally:
        distributed.destroy_process_group()
