"""What ``infer.py`` does: a config to one song, its file, and the sidecar from which it can be made again."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from acestep.assembly import fingerprint
from acestep.audio import SUBTYPES
from acestep.config.folder import write
from acestep.config.sampling import PARTS, PRESETS, build_sampler, describe
from acestep.pipeline import Pipeline
from acestep.types import Song

PACKAGES = ("torch", "torchaudio", "transformers", "soundfile", "peft")
CALL_KEYS = ("out", "from", "overwrite")
"""What says where a file comes from and goes, not what is in it."""


@dataclass(frozen=True)
class Made:
    """A finished song: its file and what it took."""

    path: Path
    song: Song
    seconds_used: float


def make(cfg: DictConfig) -> Made:
    """Make the song that ``cfg`` describes and write it, with its sidecar.

    Raises:
        ValueError: before anything is made, if the request cannot be met or a file is in the way.
    """
    started = perf_counter()
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    call = {key: settings.pop(key) for key in CALL_KEYS}
    if call["from"] is not None:
        settings = _again(Path(call["from"]), settings, HydraConfig.get().overrides.task)
    song = read_lyrics(Song(**{key: value for key, value in settings["song"].items() if key != "_target_"}))
    out = _free_path(call, song)
    settings |= machine(settings["device"], settings["dtype"])
    settings["weights_sha256"] = _unchanged(settings)
    pipeline = Pipeline.from_pretrained(settings["weights"], settings["device"], settings["dtype"], settings["padding"])
    sampler = build_sampler(settings, pipeline.sampler)
    (audio,) = pipeline.generate([song], sampler, normalize=settings["normalize"])
    settings |= {part: describe(getattr(sampler, part)) for part in PARTS}
    settings |= {"song": asdict(audio.song), "padding": pipeline.network.config.padding.value}
    audio.save(out)
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    record = {"settings": settings, "seconds": audio.seconds, "packages": packages}
    write(out.with_suffix(".json"), json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return Made(out, audio.song, perf_counter() - started)


def read_lyrics(song: Song) -> Song:
    """``song``, its lyrics read from the file that they name after an ``@``."""
    if not song.lyrics.startswith("@"):
        return song
    path = Path(song.lyrics[1:])
    try:
        return replace(song, lyrics=path.read_text(encoding="utf-8").strip())
    except FileNotFoundError as error:
        raise ValueError(f"song.lyrics=@{path}: no such file; name one, or write the lyrics themselves") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"song.lyrics=@{path}: not UTF-8 text; save it as UTF-8") from error


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
        if last == PRESETS:
            again |= {part: settings[part] for part in PARTS}
    return again


def _unchanged(settings: dict[str, Any]) -> str:
    """Hash of the weights; refused if the settings come from a song that other weights made under that name."""
    weights, now, then = settings["weights"], fingerprint(settings["weights"]), settings.get("weights_sha256")
    if then not in (None, now):
        raise ValueError(
            f"weights={weights}: changed since that song was made (sha256 {now[:12]}, then {then[:12]}); "
            f"add weights={weights} to use them all the same"
        )
    return now


def _free_path(call: dict[str, Any], song: Song) -> Path:
    words = "-".join(re.findall(r"\w+", song.caption.lower()))[:48].strip("-") or "song"
    out = Path(call["out"] or f"out/{words}-{song.seed}.flac")
    if out.suffix.lower() not in SUBTYPES:
        raise ValueError(f"out={out}: cannot write {out.suffix or 'a file without suffix'}; use {', '.join(SUBTYPES)}")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not call["overwrite"]:
            raise ValueError(f"out={out}: {path} exists; name another, or add overwrite=true")
    return out


def machine(device: str, dtype: str) -> dict[str, str]:
    """Device and dtype by name, ``auto`` decided."""
    found = torch.cuda.is_available()
    device = ("cuda" if found else "cpu") if device == "auto" else device
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device={device}: not a device; use auto, cpu, cuda or cuda:1") from error
    if kind == "cuda" and not found:
        raise ValueError(f"device={device}: torch finds no GPU here; use device=cpu")
    return {"device": device, "dtype": ("bfloat16" if kind == "cuda" else "float32") if dtype == "auto" else dtype}
