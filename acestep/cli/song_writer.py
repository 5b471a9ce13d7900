"""Generation of songs from the settings of a command: the pipeline, the state of each song, output files, sidecars."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from acestep.adapters.read import find_adapter
from acestep.audio.audio import SUBTYPES, Audio
from acestep.config import aliases, custom
from acestep.config.sampler import PARTS, override_sampler, to_config
from acestep.files import atomic, file_hash
from acestep.flow.sampler import OnStep, Sampler
from acestep.memory import GIB, choose_mode, peak_memory
from acestep.memory_modes import MemoryMode
from acestep.pipeline.build import OpenedWeights, check_device, named_dtype, parse_enum, weights_fingerprint
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.plan import SongPlan
from acestep.songs import AdapterUse, Request
from acestep.songs.lists import parse_request
from acestep.songs.song import error_line
from acestep.weights.tensors import save_tensors

PACKAGES = ("torch", "torchaudio", "transformers", "soundfile", "peft")
CHECKPOINT_KEYS = ("weights", "autoencoder")
"""Keys that name a checkpoint."""
CAPTION_LETTERS = 48
"""Largest part of the caption in a file name."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class SongJob:
    """State of one song of a command.

    Attributes:
        number: position in the list, from 1.
        request: the song; filled in by a planner.
        out: audio file.
        error: why it cannot be generated, in one sentence.
        exists: whether an earlier run generated it.
        plan: result of the planner so far.
        plan_record: the planner's settings and the original request, for the sidecar.
        awaits_edit: whether its plan was written to a file for the user to edit.
    """

    number: int
    request: Request
    out: Path
    error: str = ""
    exists: bool = False
    plan: SongPlan | None = None
    plan_record: dict[str, Any] | None = None
    awaits_edit: bool = False

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be generated."""
        return not (self.error or self.exists or self.awaits_edit)

    def fail(self, error: BaseException) -> None:
        """Record ``error`` as the reason that the song is not generated."""
        self.error = error_line(error)


@dataclass(frozen=True)
class SongWriter:
    """Generates and saves the songs of one command."""

    pipeline: Pipeline
    sampler: Sampler
    settings: dict[str, Any]

    @classmethod
    def open(
        cls,
        settings: dict[str, Any],
        opened: OpenedWeights,
        requests: Sequence[Request],
        shared: Sequence[AdapterUse] | None = None,
    ) -> SongWriter:
        """Load the pipeline.

        Args:
            settings: of the command.
            opened: the checkpoint ``settings["weights"]``.
            requests: ``memory=auto`` is chosen for the longest of them.
            shared: adapters of the whole command, which ``merge`` adds to the weights.
        """
        settings = settings | {f"{key}_sha256": _unchanged_hash(settings, key) for key in CHECKPOINT_KEYS}
        check_files(settings.get("files", {}), requests)
        memory = parse_enum("memory", MemoryMode, settings["memory"])
        device, dtype = settings["device"], named_dtype(settings["dtype"])
        if memory is MemoryMode.auto:
            seconds = max((request.seconds for request in requests if request.seconds), default=None)
            choice = choose_mode(
                opened.checkpoint, opened.config, torch.device(device), dtype, seconds, settings["batch_size"]
            )
            memory = choice.mode
            if torch.device(device).type == "cuda":
                logger.info("memory=%s: %s", memory.value, choice.reason)
        if settings["merge"] and not shared:
            raise ValueError("merge=true: there are no adapters to merge; add adapters=[...], or leave it out")
        allow_untrained, merged = settings["allow_untrained"], (shared or ()) if settings["merge"] else ()
        pipeline = Pipeline.from_pretrained(opened, device, dtype, settings["padding"], memory, allow_untrained, merged)
        if settings.get("autoencoder"):
            pipeline = pipeline.with_autoencoder(settings["autoencoder"])
        pipeline = replace(pipeline, compiled=settings.get("compile", False))
        sampler = override_sampler(settings, pipeline.sampler)
        settings |= {part: to_config(getattr(sampler, part)) for part in PARTS}
        settings |= {"memory": memory.value, "padding": pipeline.network.config.padding.value}
        settings.pop("code", None)
        if code := custom.source_hashes(settings):
            settings["code"] = code
        return cls(pipeline, sampler, settings)

    def generate(
        self, requests: Sequence[Request], latents: Path | None = None, on_step: OnStep | None = None
    ) -> Iterator[Audio]:
        """Audio of each request; ``latents`` is the audio file of a single song whose latents are saved beside it."""
        batch, level = self.settings["batch_size"], self.settings["normalize"]
        on_latents = None
        if latents is not None:
            file = latents.with_suffix(".latents.safetensors")
            on_latents = lambda _, values: save_tensors({"latents": values}, file)  # noqa: E731
        try:
            yield from self.pipeline.generate(requests, self.sampler, batch, level, on_step, on_latents)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"memory={self.settings['memory']}: {self.settings['device']} has too little for this song; use "
                "memory=int8_offload, a smaller batch_size or a shorter song"
            ) from error

    def record(self, request: Request) -> dict[str, Any]:
        """All settings that determine the audio of ``request``."""
        return self.settings | {"song": asdict(request), "files": file_hashes(request)}

    def save(self, audio: Audio, job: SongJob) -> None:
        """Write the sidecar and then the audio, so that an audio file is always complete."""
        assert isinstance(audio.song, Request)
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        record = {"settings": self.record(audio.song), "seconds": audio.seconds, "packages": packages}
        if job.plan_record:
            record["planned"] = job.plan_record
        sidecar = job.out.with_suffix(".json")
        with atomic(sidecar) as aside:
            aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            audio.save(job.out)
        except BaseException:
            sidecar.unlink(missing_ok=True)
            raise


def read_sidecar(path: Path) -> dict[str, Any]:
    """The sidecar at ``path``; its ``settings`` have a ``song``.

    Raises:
        ValueError: there is none, or it is not a sidecar.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"from={path}: no such file; need the .json beside a song") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"from={path}: not the .json that infer.py writes beside a song") from error
    settings = record.get("settings") if isinstance(record, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("song"), dict):
        raise ValueError(f"from={path}: not the .json that infer.py writes beside a song; it has no settings.song")
    return record


def read_existing_sidecar(out: Path) -> dict[str, Any]:
    """The sidecar of the audio file ``out``, with former names replaced; empty if there is none."""
    try:
        sidecar: dict[str, Any] = aliases.rename_recorded(read_sidecar(out.with_suffix(".json")))
    except ValueError:
        return {}
    return sidecar


def config_request(values: Mapping[str, Any]) -> Request:
    """The request in a config or a sidecar."""
    values = {key: value for key, value in values.items() if key != "_target_" and value is not None}
    if isinstance(adapters := values.pop("adapters", None), list):
        adapters = [
            {key: value for key, value in use.items() if key != "_target_"} if isinstance(use, dict) else use
            for use in adapters
        ]
    return parse_request(values | ({"adapters": adapters} if adapters else {}), Path())


def shared_adapters(settings: dict[str, Any]) -> tuple[AdapterUse, ...] | None:
    """Removes ``adapters`` from ``settings``: those of all songs that name none."""
    return parse_request({"adapters": settings.pop("adapters", None) or None}, Path()).adapters


def plain_settings(cfg: DictConfig) -> dict[str, Any]:
    """A composed config with every interpolation resolved. Raises ``MissingMandatoryValue`` if a key is not given."""
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    return cast("dict[str, Any]", settings)


def peak_memory_text(device: str) -> str:
    """The peak memory of this process."""
    return f"peak memory {peak_memory(torch.device(device)) / GIB:.2f} GiB"


def device_settings(device: str, dtype: str) -> dict[str, str]:
    """``device`` and ``dtype`` with ``auto`` resolved."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = check_device(device).type
    return {"device": device, "dtype": ("bfloat16" if kind == "cuda" else "float32") if dtype == "auto" else dtype}


def file_name(request: Request, number: int | None, suffix: str) -> str:
    """The file name of a song: its ``name``, or one made of its number, caption and seed."""
    if request.name is not None:
        return request.name if Path(request.name).suffix.lower() in SUBTYPES else f"{request.name}.{suffix}"
    caption = "-".join(re.findall(r"\w+", request.caption.lower()))[:CAPTION_LETTERS].strip("-") or "song"
    prefix = "" if number is None else f"{number:04d}-"
    return f"{prefix}{caption}-{request.seed}.{suffix}"


def check_output(out: Path, overwrite: bool) -> None:
    """Raises ``ValueError`` if the audio file ``out`` cannot be written, or exists without ``overwrite``."""
    if out.suffix.lower() not in SUBTYPES:
        raise ValueError(f"out={out}: cannot write {out.suffix or 'a file without suffix'}; use {', '.join(SUBTYPES)}")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not overwrite:
            raise ValueError(f"out={out}: {path} exists; name another, or add overwrite=true")
        if path.is_dir():
            raise ValueError(f"out={out}: {path} is a folder; name another file")
    check_writable(out, out.parent)


def check_writable(out: Path, folder: Path) -> None:
    """Raises ``ValueError`` if ``folder`` is not writable, or could not be created."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ValueError(f"out={out}: {existing} is a file, not a folder; name another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"out={out}: no permission to write to {existing}; name another folder")


def file_hashes(request: Request) -> dict[str, str]:
    """SHA-256 of every file that ``request`` names."""
    files = {str(Path(path)): Path(path) for path in (request.source, *request.references) if path}
    files |= {use.path: find_adapter(Path(use.path)) for use in request.adapters or ()}
    return {name: file_hash(path) if path.is_file() else "missing" for name, path in files.items()}


def check_files(recorded: Mapping[str, str], requests: Sequence[Request]) -> None:
    """Raises ``ValueError`` if a file has changed since the song of a sidecar was generated."""
    if not recorded:
        return
    for request in requests:
        for name, sha256 in file_hashes(request).items():
            if recorded.get(name, sha256) != sha256:
                raise ValueError(
                    f"song: {name} changed since that song was generated (sha256 {sha256[:12]}, then "
                    f"{recorded[name][:12]}); name the original file"
                )


def _unchanged_hash(settings: Mapping[str, Any], key: str) -> str | None:
    """Hash of the checkpoint ``settings[key]``, which must equal that of the sidecar, if any."""
    name = settings.get(key)
    if name is None:
        return None
    actual, recorded = weights_fingerprint(name), settings.get(f"{key}_sha256")
    if recorded not in (None, actual):
        raise ValueError(
            f"{key}={name}: changed since that song was generated (sha256 {actual[:12]}, then {recorded[:12]}); "
            f"add {key}={name} to use it anyway"
        )
    return actual
