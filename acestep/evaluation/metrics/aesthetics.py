"""Predictors of listeners' ratings, each through the library that publishes it, if that is installed.

Their input is 16 kHz and 24 kHz mono, less than the song. A model tuned on a predictor must not be evaluated by it.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Features, MissingWeightsError, mono
from acestep.evaluation.embedders.pretrained import load_local
from acestep.evaluation.hashing import digest, digest_module
from acestep.evaluation.metrics.base import SongMetric

AUDIOBOX_AXES = {"CE": "enjoyment", "CU": "usefulness", "PC": "complexity", "PQ": "quality"}
SONGEVAL_AXES = ("coherence", "musicality", "memorability", "clarity", "naturalness")
MUQ_LAYER = 6
MUQ_RATE = 24_000


@dataclass(frozen=True, kw_only=True)
class AudioboxAesthetics(SongMetric):
    """Audiobox Aesthetics (Tjandra et al. 2025): four axes of about 1 to 10. Complexity is not a quality.

    Attributes:
        weights: its ``checkpoint.pt``.
    """

    weights: str = ""
    name = "audiobox"
    headline = "quality"

    @cached_property
    def fingerprint(self) -> str:
        return digest("audiobox", digest_module(self._predictor.model))

    @cached_property
    def _predictor(self) -> Any:
        if not Path(self.weights).is_file():
            raise MissingWeightsError(
                f"metrics.audiobox.weights={self.weights}: no such file; download checkpoint.pt from "
                "https://huggingface.co/facebook/audiobox-aesthetics (CC-BY 4.0) and name it by this key"
            )
        try:
            from audiobox_aesthetics.infer import initialize_predictor
        except ImportError as error:
            raise MissingWeightsError(
                f"audiobox-aesthetics is not installed ({error}); pip install audiobox-aesthetics"
            ) from error
        return initialize_predictor(ckpt=self.weights)

    def extract(self, audio: Audio) -> Features:
        """One number (1) for each axis: mean over the song's 10 s windows, as the library takes it."""
        (row,) = self._predictor.forward([{"path": audio.samples, "sample_rate": audio.sample_rate}])
        axes = json.loads(row) if isinstance(row, str) else row
        return {name: torch.tensor([float(axes[axis])]) for axis, name in AUDIOBOX_AXES.items()}


@dataclass(frozen=True, kw_only=True)
class SongEval(SongMetric):
    """SongEval (Yao et al. 2025): five axes of 1 to 5 over the whole song in one pass. Not for commercial use.

    Attributes:
        folder: a clone of its repository with its checkpoint; its ``model.py`` is imported and run.
        encoder: MuQ, whose hidden states it reads: a folder, or a hub id in the local cache.
        device: device of both models.
    """

    folder: str = ""
    encoder: str = "OpenMuQ/MuQ-large-msd-iter"
    device: str = "cpu"
    name = "songeval"
    headline = "musicality"

    @cached_property
    def fingerprint(self) -> str:
        return digest("songeval", *map(digest_module, self._models))

    @cached_property
    def _models(self) -> tuple[Any, torch.nn.Module]:
        """Encoder and head."""
        root = Path(self.folder)
        if not self.folder or not (root / "ckpt" / "model.safetensors").is_file():
            raise MissingWeightsError(
                f"metrics.songeval.folder={self.folder}: no ckpt/model.safetensors in it; `git clone "
                "https://github.com/ASLP-lab/SongEval` with git-lfs and name the folder by this key"
            )
        try:
            from muq import MuQ
        except ImportError as error:
            raise MissingWeightsError(f"muq is not installed ({error}); pip install muq") from error
        (encoder,) = load_local("metrics.songeval.encoder", self.encoder, MuQ)
        return encoder.to(self.device).eval(), _songeval_head(root).to(self.device).eval()

    @torch.inference_mode()
    def extract(self, audio: Audio) -> Features:
        """One number (1) for each axis."""
        encoder, head = self._models
        samples = mono(audio, MUQ_RATE)[None].to(self.device)
        values = head(encoder(samples, output_hidden_states=True)["hidden_states"][MUQ_LAYER]).squeeze(0).float().cpu()
        return {name: value[None] for name, value in zip(SONGEVAL_AXES, values, strict=True)}


def _songeval_head(root: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("songeval_model", root / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))["generator"]
    head: torch.nn.Module = module.Generator(**{name: v for name, v in settings.items() if name != "_target_"})
    # Upstream loads with strict=False; here a name that does not fit is an error.
    head.load_state_dict(load_file(root / "ckpt" / "model.safetensors"))
    return head
