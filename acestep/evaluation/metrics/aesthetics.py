"""Predictors of what people would say of a song, each through the library that publishes it, if that is installed.

Both hear less than the song is: 16 kHz and 24 kHz mono. A model tuned on such a predictor may not be judged by it.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError, mono
from acestep.evaluation.embedders.cache import Heard
from acestep.evaluation.embedders.pretrained import local
from acestep.evaluation.files import digest, digest_module
from acestep.evaluation.metrics.base import Unprompted
from acestep.evaluation.prompts import Prompt

AUDIOBOX_AXES = {"CE": "enjoyment", "CU": "usefulness", "PC": "complexity", "PQ": "quality"}
SONGEVAL_AXES = ("coherence", "musicality", "memorability", "clarity", "naturalness")
MUQ = "OpenMuQ/MuQ-large-msd-iter"
MUQ_LAYER = 6
MUQ_RATE = 24_000


@dataclass(frozen=True, kw_only=True)
class AudioboxAesthetics:
    """Audiobox Aesthetics (Tjandra et al. 2025): four axes of about 1 to 10. Complexity is no quality.

    Attributes:
        weights: its ``checkpoint.pt``.
    """

    weights: str = ""

    def load(self) -> PredictedScorer:
        """The scorer. Raises :class:`MissingWeightsError` if library or checkpoint are not here."""
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
        return PredictedScorer(AudioboxEar(initialize_predictor(ckpt=self.weights)), ("quality",))


class AudioboxEar:
    """Four numbers of a song: means over its 10 s windows, as the library takes them."""

    name = "audiobox"

    def __init__(self, predictor: Any) -> None:
        self.fingerprint = digest("audiobox", digest_module(predictor.model))
        self._predictor = predictor

    def hear(self, audio: Audio) -> Heard:
        """One number (1) for each axis."""
        (row,) = self._predictor.forward([{"path": audio.samples, "sample_rate": audio.sample_rate}])
        found = json.loads(row) if isinstance(row, str) else row
        return {name: torch.tensor([float(found[axis])]) for axis, name in AUDIOBOX_AXES.items()}


@dataclass(frozen=True, kw_only=True)
class SongEval:
    """SongEval (Yao et al. 2025): five axes of 1 to 5 over the whole song in one pass. Not for commercial use.

    Attributes:
        folder: a clone of its repository with its checkpoint; its ``model.py`` is imported and run.
        device: where it runs.
    """

    folder: str = ""
    device: str = "cpu"

    def load(self) -> PredictedScorer:
        """The scorer. Raises :class:`MissingWeightsError` if repository, library or encoder are not here."""
        root = Path(self.folder)
        if not self.folder or not (root / "ckpt" / "model.safetensors").is_file():
            raise MissingWeightsError(
                f"metrics.songeval.folder={self.folder}: no ckpt/model.safetensors in it; `git clone "
                "https://github.com/ASLP-lab/SongEval` with git-lfs and name the folder by this key"
            )
        try:
            from muq import MuQ as Encoder
        except ImportError as error:
            raise MissingWeightsError(f"muq is not installed ({error}); pip install muq") from error
        (encoder,) = local("songeval's encoder", MUQ, Encoder)
        return PredictedScorer(SongEvalEar(encoder, _songeval_head(root), self.device), SONGEVAL_AXES[1:2])


def _songeval_head(root: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("songeval_model", root / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))["generator"]
    head: torch.nn.Module = module.Generator(**{name: v for name, v in settings.items() if name != "_target_"})
    # Upstream loads loosely; here a name that does not fit is an error.
    head.load_state_dict(load_file(root / "ckpt" / "model.safetensors"))
    return head


class SongEvalEar:
    """Five numbers of a song."""

    name = "songeval"

    def __init__(self, encoder: Any, head: torch.nn.Module, device: str) -> None:
        self.fingerprint = digest("songeval", digest_module(encoder), digest_module(head))
        self._encoder, self._head, self._device = encoder.to(device).eval(), head.to(device).eval(), device

    @torch.inference_mode()
    def hear(self, audio: Audio) -> Heard:
        """One number (1) for each axis."""
        samples = mono(audio, MUQ_RATE)[None].to(self._device)
        hidden = self._encoder(samples, output_hidden_states=True)["hidden_states"][MUQ_LAYER]
        values = self._head(hidden).squeeze(0).float().cpu()
        return {name: value[None] for name, value in zip(SONGEVAL_AXES, values, strict=True)}


@dataclass(frozen=True)
class PredictedScorer(Unprompted):
    """Every axis that an ear predicts, those of ``first`` ahead of the others."""

    ear: AudioboxEar | SongEvalEar
    first: tuple[str, ...]

    def score(self, heard: Heard, prompt: Prompt) -> dict[str, float]:
        """The predictions."""
        names = [*self.first, *(name for name in sorted(heard) if name not in self.first)]
        return {name: float(heard[name]) for name in names}
