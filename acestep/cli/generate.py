"""What ``infer.py`` does: a config to songs, their files, and the sidecars from which they can be made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from acestep.cli.entry import Entry, read_sidecar, song_of
from acestep.cli.generate_list import make_many
from acestep.cli.plan_songs import Planning
from acestep.cli.progress import song_bar, stepping
from acestep.cli.song_writer import CHECKPOINTS, Studio, file_name, free_path, machine, peak
from acestep.config.keys import CALL, NOTED, SETTINGS, check_keys
from acestep.config.run import build
from acestep.config.sampler import PARTS, PRESETS
from acestep.songs.lists import read_lyrics, request_of
from acestep.songs.song import Request


def make(cfg: DictConfig, tell: Callable[[str], None]) -> int:
    """Make what ``cfg`` describes, telling of each result in a line; returns the exit status.

    Raises:
        ValueError: before anything is made, if the request of a single song cannot be met or a file is in the way.
    """
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    check_keys(settings, CALL | SETTINGS)
    call = {key: settings.pop(key) for key in CALL}
    planning = build(settings.pop("planner")) or None
    if call["from"] is not None and call["songs"] is None:
        settings |= _again(Path(call["from"]), settings, HydraConfig.get().overrides.task)
    settings |= machine(settings["device"], settings["dtype"])
    if call["songs"] is not None:
        return make_many(call, settings, planning, tell)
    return _make_one(call, settings, planning, tell)


def _make_one(
    call: dict[str, Any], settings: dict[str, Any], planning: Planning | None, tell: Callable[[str], None]
) -> int:
    started = perf_counter()
    request = _with_adapters(read_lyrics(song_of(settings["song"])), settings)
    out = Path(call["out"] or Path("out") / file_name(request, None, call["format"]))
    free_path(out, call["overwrite"])
    entry = Entry(1, request, out)
    if planning:
        planning([entry], settings, tell, anew=call["overwrite"])
    if entry.error:
        raise ValueError(entry.error)
    if entry.waits:
        return 0
    studio = Studio.open(settings, [entry.request], request.adapters)
    with song_bar(1) as moved:
        (audio,) = studio.make([entry.request], out if call["keep_latents"] else None, stepping(moved, 0, 1))
        moved(1)
    studio.save(audio, out, entry.planned)
    took, most = perf_counter() - started, peak(settings["device"])
    tell(f"{out}  ({audio.seconds:.1f} s of music in {took:.1f} s; at most {most})")
    return 0


def _with_adapters(request: Request, settings: dict[str, Any]) -> Request:
    """``request`` with the adapters of the whole call, where it names none."""
    shared = request_of({"adapters": settings.pop("adapters", None) or None}, Path()).adapters
    return replace(request, adapters=shared) if request.adapters is None else request


def _read_settings(sidecar: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The settings in ``sidecar``, which may have the keys of ``known``."""
    settings: dict[str, Any] = read_sidecar(sidecar)["settings"]
    if unknown := sorted(settings.keys() - known.keys() - NOTED.keys()):
        raise ValueError(f"from={sidecar}: settings.{unknown[0]} is no setting of infer.py; remove it")
    try:
        check_keys(settings, SETTINGS | NOTED)
    except ValueError as error:
        raise ValueError(f"from={sidecar}: settings.{error}") from error
    return settings


def _again(sidecar: Path, settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings in ``sidecar``; keys that ``overrides`` name are taken from ``settings``, the composed ones."""
    again = _read_settings(sidecar, settings)
    for override in overrides:
        *parents, last = override.partition("=")[0].lstrip("+~").split(".")
        if parents[:1] == ["planner"]:
            continue
        new, old = settings, again
        for parent in parents:
            if not isinstance(old.get(parent), dict):  # a part that the song was made without
                old[parent] = new[parent]
            new, old = new[parent], old[parent]
        if last in new:
            old[last] = new[last]
        if last in CHECKPOINTS:
            again[f"{last}_sha256"] = None
        if [*parents, last] == ["adapters"]:
            again["song"]["adapters"] = None
        if last == PRESETS:
            again |= {part: settings[part] for part in PARTS}
    return again
