"""What ``infer.py`` does: a config to songs, their files, and the sidecars from which they can be made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from acestep.config.many import make_many
from acestep.config.sampling import PARTS, PRESETS
from acestep.config.studio import Studio, file_name, free_path, machine
from acestep.song import Request
from acestep.songs import read_lyrics, request_of

CALL_KEYS = ("songs", "out", "from", "overwrite", "format", "keep_latents")
"""What says where files come from and go, not what is in them."""


def make(cfg: DictConfig, tell: Callable[[str], None]) -> int:
    """Make what ``cfg`` describes, telling of each result in a line; returns the exit status.

    Raises:
        ValueError: before anything is made, if the request of a single song cannot be met or a file is in the way.
    """
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    call = {key: settings.pop(key) for key in CALL_KEYS}
    if call["songs"] is not None:
        return make_many(call, settings, tell)
    started = perf_counter()
    if call["from"] is not None:
        settings |= _again(Path(call["from"]), settings, HydraConfig.get().overrides.task)
    request = read_lyrics(song_of(settings["song"]))
    request = _with_adapters(request, settings)
    out = Path(call["out"] or Path("out") / file_name(request, None, call["format"]))
    free_path(out, call["overwrite"])
    studio = Studio.open(settings | machine(settings["device"], settings["dtype"]), [request])
    (audio,) = studio.make([request], out if call["keep_latents"] else None)
    studio.save(audio, out)
    took, most = perf_counter() - started, studio.peak()
    tell(f"{out}  ({audio.seconds:.1f} s of music in {took:.1f} s; at most {most})")
    return 0


def song_of(values: dict[str, Any]) -> Request:
    """The request in a config or sidecar."""
    values = {key: value for key, value in values.items() if key != "_target_" and value is not None}
    adapters = [{key: use[key] for key in ("path", "scale")} for use in values.pop("adapters", ())] or None
    return request_of(values | ({"adapters": adapters} if adapters else {}), Path())


def _with_adapters(request: Request, settings: dict[str, Any]) -> Request:
    """``request`` with the adapters of the whole call, where it names none."""
    shared = request_of({"adapters": settings.pop("adapters", None) or None}, Path()).adapters
    return replace(request, adapters=shared) if request.adapters is None else request


def _again(sidecar: Path, settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings in ``sidecar``; keys that ``overrides`` name are taken from ``settings``, the composed ones."""
    try:
        again = json.loads(sidecar.read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError as error:
        raise ValueError(f"from={sidecar}: no such file; need the .json beside a song") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"from={sidecar}: not the .json that infer.py writes beside a song") from error
    for override in overrides:
        *parents, last = override.partition("=")[0].lstrip("+~").split(".")
        new, old = settings, again
        for parent in parents:
            new, old = new[parent], old[parent]
        if last in new:
            old[last] = new[last]
        if last == "weights":
            again["weights_sha256"] = None
        if [*parents, last] == ["adapters"]:
            again["song"]["adapters"] = None
        if last == PRESETS:
            again |= {part: settings[part] for part in PARTS}
    return again
