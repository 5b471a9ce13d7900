"""``infer.py``: generates one song or a list of songs, with sidecars from which they can be generated again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from acestep.cli.generate_list import generate_list
from acestep.cli.plan_songs import Planning
from acestep.cli.song_writer import (
    CHECKPOINT_KEYS,
    SongJob,
    SongWriter,
    check_output,
    config_request,
    device_settings,
    file_name,
    peak_memory_text,
    plain_settings,
    read_sidecar,
    shared_adapters,
)
from acestep.cli.terminal import on_step_progress, song_progress
from acestep.config import custom
from acestep.config.run import build
from acestep.config.sampler import PARTS, PRESETS
from acestep.config.top_level import INFER_FILE_KEYS, INFER_KEYS, SIDECAR_KEYS, check_keys
from acestep.pipeline.build import open_weights
from acestep.songs.lists import read_lyrics


def generate(cfg: DictConfig) -> int:
    """Generate the songs of a composed ``infer.yaml``, printing a line for each; returns the exit status.

    Raises:
        ValueError: before any audio is generated, if the request of a single song is invalid or its file exists.
    """
    settings = plain_settings(cfg)
    check_keys(settings, INFER_FILE_KEYS | INFER_KEYS)
    files = {key: settings.pop(key) for key in INFER_FILE_KEYS}
    planning: Planning | None = build(settings.pop("planner")) or None
    if files["from"] is not None and files["songs"] is None:
        settings |= _sidecar_settings(Path(files["from"]), settings, HydraConfig.get().overrides.task)
    settings |= device_settings(settings["device"], settings["dtype"])
    if files["songs"] is not None:
        return generate_list(files, settings, planning)
    _generate_one(files, settings, planning)
    return 0


def _generate_one(files: dict[str, Any], settings: dict[str, Any], planning: Planning | None) -> None:
    started = perf_counter()
    request, shared = read_lyrics(config_request(settings["song"])), shared_adapters(settings)
    request = replace(request, adapters=shared) if request.adapters is None else request
    job = SongJob(1, request, Path(files["out"] or Path("out") / file_name(request, None, files["format"])))
    check_output(job.out, files["overwrite"])
    opened = open_weights(settings["weights"])
    if planning:
        planning([job], settings, opened, replan=files["overwrite"])
    if job.error:
        raise ValueError(job.error)
    if job.awaits_edit:
        return
    writer = SongWriter.open(settings, opened, [job.request], request.adapters)
    with song_progress(1) as set_done:
        latents = job.out if files["keep_latents"] else None
        (audio,) = writer.generate([job.request], latents, on_step_progress(set_done, 0, 1))
        set_done(1)
    writer.save(audio, job)
    seconds, memory = perf_counter() - started, peak_memory_text(settings["device"])
    print(f"{job.out}  ({audio.seconds:.1f} s of music in {seconds:.1f} s; {memory})", flush=True)


def _read_settings(sidecar: Path, composed: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = read_sidecar(sidecar)["settings"]
    if unknown := sorted(settings.keys() - composed.keys() - SIDECAR_KEYS.keys()):
        raise ValueError(f"from={sidecar}: settings.{unknown[0]} is no setting of infer.py; remove it")
    try:
        check_keys(settings, INFER_KEYS | SIDECAR_KEYS)
    except ValueError as error:
        raise ValueError(f"from={sidecar}: settings.{error}") from error
    return settings


def _sidecar_settings(sidecar: Path, composed: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings in ``sidecar``; keys that ``overrides`` name are taken from the ``composed`` settings."""
    settings = _read_settings(sidecar, composed)
    for override in overrides:
        *parents, last = override.partition("=")[0].lstrip("+~").split(".")
        if parents[:1] == ["planner"]:
            continue
        source, target = composed, settings
        for parent in parents:
            if not isinstance(target.get(parent), dict):  # a part that the song was generated without
                target[parent] = source[parent]
            source, target = source[parent], target[parent]
        if last in source:
            target[last] = source[last]
        if last in CHECKPOINT_KEYS:
            settings[f"{last}_sha256"] = None
        if [*parents, last] == ["adapters"]:
            settings["song"]["adapters"] = None
        if last == PRESETS:
            settings |= {part: composed[part] for part in PARTS}
    custom.check_recorded_classes(settings, composed, f"from={sidecar}")
    return settings
