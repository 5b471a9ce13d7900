"""Pipeline and sampler as a command's settings describe them, and the record of all that decided a song."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from acestep.adapters.read import find_adapter
from acestep.audio.audio import SUBTYPES, Audio
from acestep.cli.entry import sidecar_of
from acestep.config.sampler import PARTS, build_sampler, describe
from acestep.files import atomic
from acestep.flow.sampler import OnStep, Sampler
from acestep.memory import GIB, peak_memory, pick
from acestep.modes import Memory
from acestep.pipeline.build import check_device, choice, fingerprint, named_dtype
from acestep.pipeline.pipeline import Pipeline
from acestep.types import AdapterUse, Request
from acestep.weights.tensors import save_tensors

PACKAGES = ("torch", "torchaudio", "transformers", "soundfile", "peft")
CHECKPOINTS = ("weights", "autoencoder")
"""Keys that name one."""
NAMED_LETTERS = 48
"""Of the caption in a file's name."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Studio:
    """What makes the songs of one command."""

    pipeline: Pipeline
    sampler: Sampler
    settings: dict[str, Any]

    @classmethod
    def open(
        cls, settings: dict[str, Any], requests: Sequence[Request], shared: Sequence[AdapterUse] | None = None
    ) -> Studio:
        """Load what ``settings`` name.

        ``requests`` are what it must have the memory for; ``shared`` adapters are those that ``merge`` adds to the
        weights.
        """
        settings = settings | {f"{key}_sha256": _unchanged(settings, key) for key in CHECKPOINTS}
        check_files(settings.get("files", {}), requests)
        memory = choice("memory", Memory, settings["memory"])
        weights, device, dtype = settings["weights"], settings["device"], named_dtype(settings["dtype"])
        if memory is Memory.auto:
            seconds = [request.seconds for request in requests if request.seconds]
            chosen = pick(weights, torch.device(device), dtype, max(seconds, default=None), settings["batch_size"])
            memory = chosen.mode
            if torch.device(device).type == "cuda":
                logger.info("memory=%s: %s", memory.value, chosen.reason)
        if settings["merge"] and not shared:
            raise ValueError("merge=true: there are no adapters to merge; add adapters=[...], or leave it out")
        untrained, merged = settings["allow_untrained"], shared if settings["merge"] else ()
        pipeline = Pipeline.from_pretrained(weights, device, dtype, settings["padding"], memory, untrained, merged)
        if settings.get("autoencoder"):
            pipeline = pipeline.with_autoencoder(settings["autoencoder"])
        pipeline = replace(pipeline, compiled=settings.get("compile", False))
        sampler = build_sampler(settings, pipeline.sampler)
        settings |= {part: describe(getattr(sampler, part)) for part in PARTS}
        settings |= {"memory": memory.value, "padding": pipeline.network.config.padding.value}
        return cls(pipeline, sampler, settings)

    def make(
        self, requests: Sequence[Request], latents: Path | None = None, on_step: OnStep | None = None
    ) -> Iterator[Audio]:
        """Audio of each request; the latents of a single one go beside the file ``latents`` where that is given."""
        batch, level = self.settings["batch_size"], self.settings["normalize"]
        keep = latents and (lambda _, made: save_latents(made, latents))
        try:
            yield from self.pipeline.generate(requests, self.sampler, batch, level, on_step, keep)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"memory={self.settings['memory']}: {self.settings['device']} has too little for this song; use "
                "memory=int8_offload, a smaller batch_size or a shorter song"
            ) from error

    def record(self, song: Request) -> dict[str, Any]:
        """All that decided a song."""
        return self.settings | {"song": asdict(song), "files": hashes(song)}

    def save(self, audio: Audio, out: Path, planned: dict[str, Any] | None = None) -> None:
        """Write the sidecar and then the song, so that a song that is there has been finished.

        ``planned`` says what its request was planned from.
        """
        packages = {name: importlib.metadata.version(name) for name in PACKAGES}
        record = {"settings": self.record(audio.song), "seconds": audio.seconds, "packages": packages}
        record |= {"planned": planned} if planned else {}
        with atomic(sidecar_of(out)) as aside:
            aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            audio.save(out)
        except BaseException:
            sidecar_of(out).unlink(missing_ok=True)
            raise


def peak(device: str) -> str:
    """The most memory that was held, in words."""
    return f"{peak_memory(torch.device(device)) / GIB:.2f} GiB"


def machine(device: str, dtype: str) -> dict[str, str]:
    """Device and dtype by name, ``auto`` decided."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    kind = check_device(device).type
    return {"device": device, "dtype": ("bfloat16" if kind == "cuda" else "float32") if dtype == "auto" else dtype}


def save_latents(latents: torch.Tensor, out: Path) -> None:
    """Keep a song's latents beside it."""
    save_tensors({"latents": latents}, out.with_suffix(".latents.safetensors"))


def file_name(request: Request, number: int | None, suffix: str) -> str:
    """The name of a song's file: its own, or one made of its place, caption and seed."""
    if request.name is not None:
        return request.name if Path(request.name).suffix.lower() in SUBTYPES else f"{request.name}.{suffix}"
    words = "-".join(re.findall(r"\w+", request.caption.lower()))[:NAMED_LETTERS].strip("-") or "song"
    place = "" if number is None else f"{number:04d}-"
    return f"{place}{words}-{request.seed}.{suffix}"


def free_path(out: Path, overwrite: bool) -> None:
    """Refuse a path that cannot be written, or only over something else."""
    if out.suffix.lower() not in SUBTYPES:
        raise ValueError(f"out={out}: cannot write {out.suffix or 'a file without suffix'}; use {', '.join(SUBTYPES)}")
    for path in (out, sidecar_of(out)):
        if path.exists() and not overwrite:
            raise ValueError(f"out={out}: {path} exists; name another, or add overwrite=true")
        if path.is_dir():
            raise ValueError(f"out={out}: {path} is a folder; name another file")
    writable(out, out.parent)


def writable(out: Path, folder: Path) -> None:
    """Refuse ``out`` where nothing can be written to ``folder``, which is not made if it is not there."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"out={out}: {there} is a file, not a folder; name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"out={out}: {there} may not be written to; name another folder")


def hashes(song: Request) -> dict[str, str]:
    """SHA-256 of every file that ``song`` starts from or uses."""
    files = [Path(path) for path in (song.source, *song.references) if path]
    named = {str(file): file for file in files} | {
        use.path: find_adapter(Path(use.path)) for use in song.adapters or ()
    }
    return {name: _digest(path) for name, path in named.items()}


def check_files(then: dict[str, str], requests: Sequence[Request]) -> None:
    """Refuse files that changed since the song of a sidecar was made."""
    if not then:
        return
    for request in requests:
        for name, now in hashes(request).items():
            if then.get(name, now) != now:
                raise ValueError(
                    f"song: {name} changed since that song was made (sha256 {now[:12]}, then {then[name][:12]}); name "
                    "the file that it was made from"
                )


def _digest(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unchanged(settings: dict[str, Any], key: str) -> str | None:
    """Hash of a checkpoint; refused if the settings come from a song that another made under that name."""
    named = settings.get(key)
    if named is None:
        return None
    now, then = fingerprint(named), settings.get(f"{key}_sha256")
    if then not in (None, now):
        raise ValueError(
            f"{key}={named}: changed since that song was made (sha256 {now[:12]}, then {then[:12]}); "
            f"add {key}={named} to use it all the same"
        )
    return now
