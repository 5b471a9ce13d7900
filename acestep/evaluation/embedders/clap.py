"""CLAP through the two libraries that publish it, behind one interface; each is imported when first used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Embedder, MissingWeightsError, cut_windows, mono
from acestep.evaluation.embedders.pretrained import load_local
from acestep.evaluation.hashing import digest, digest_module
from acestep.songs import Song

log = logging.getLogger(__name__)

SAMPLE_RATE = 48_000
WINDOW = 480_000
BATCH = 16
TEXT_TOKENS = 77
MUSIC_CHECKPOINT = "music_audioset_epoch_15_esc_90.14.pt"
# The names under which fadtk keeps statistics of these two.
FADTK_NAMES = {Path(MUSIC_CHECKPOINT).stem: "clap-laion-music", "630k-audioset-best": "clap-laion-audio"}

UNRELATED = (
    "solo grand piano, slow and sad", "fast thrash metal with double bass drums", "a crowd cheering in a stadium",
    "birds singing in a forest at dawn", "minimal techno with a deep kick", "a cappella choir in a cathedral",
    "bossa nova guitar and soft brushes", "heavy rain on a tin roof", "trap beat with rolling hi-hats and sub bass",
    "Baroque harpsichord concerto", "bluegrass banjo and fiddle", "a man giving a speech",
    "ambient drone with long reverb", "reggae with off-beat organ", "mariachi trumpets and violins",
    "8-bit video game chiptune",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clap(Embedder):
    """Base of both libraries' embedders: fixed 10 s windows.

    Attributes:
        hop_seconds: hop of the windows. fadtk's FAD uses 1.
        device: device of the encoders.
    """

    hop_seconds: float = 10.0
    device: str = "cpu"
    unrelated = tuple(Song(caption=caption) for caption in UNRELATED)

    def _window_batches(self, audio: Audio) -> Sequence[Float[Tensor, "b s"]]:
        return cut_windows(mono(audio, SAMPLE_RATE), WINDOW, round(self.hop_seconds * SAMPLE_RATE)).split(BATCH)


@dataclass(frozen=True, kw_only=True)
class LaionClap(Clap):
    """LAION's own library and checkpoint, as music papers use it (MusicGen's evaluation: the music checkpoint).

    Fixed windows through ``laion_clap``'s own preprocessing (16-bit rounding included) and encoders.

    Attributes:
        weights: the checkpoint, ``.pt`` or ``.safetensors``.
        architecture: audio encoder: ``HTSAT-base`` for the music checkpoint, ``HTSAT-tiny`` for
            ``630k-audioset-best.pt``.
    """

    weights: str = ""
    architecture: str = "HTSAT-base"

    @property
    def name(self) -> str:
        stem = Path(self.weights).stem
        return FADTK_NAMES.get(stem, f"clap-{stem}")

    @cached_property
    def fingerprint(self) -> str:
        return digest("laion-clap", digest_module(self._module.model), str(WINDOW), str(self.hop_seconds))

    @cached_property
    def _module(self) -> Any:
        if not self.weights or not Path(self.weights).is_file():
            raise MissingWeightsError(
                f"laion_clap={self.weights}: no such file; download {MUSIC_CHECKPOINT} from "
                "https://huggingface.co/lukewys/laion_clap and name it by this key"
            )
        try:
            import laion_clap
        except ImportError as error:
            raise MissingWeightsError(f"laion-clap is not installed ({error}); pip install 'acestep[eval]'") from error
        except OSError as error:
            raise MissingWeightsError(
                "laion-clap loads the tokenizers of roberta-base, bert-base-uncased and facebook/bart-base and finds "
                f"them neither in the Hugging Face cache nor online ({error}); run once with a network, or set HF_HOME"
            ) from error
        module = laion_clap.CLAP_Module(enable_fusion=False, amodel=self.architecture, device=self.device)
        module.model.load_state_dict(read_laion_checkpoint(self.weights))
        return module.eval()

    @torch.inference_mode()
    def embed_audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """One 512-d unit vector for each 10 s window."""
        parts = [self._module.get_audio_embedding_from_data(x=part.numpy()) for part in self._window_batches(audio)]
        return torch.from_numpy(np.concatenate(parts))

    @torch.inference_mode()
    def embed_text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """One 512-d unit vector for each caption; RoBERTa reads its first 77 tokens."""
        captions = [song.caption for song in songs]
        _warn_truncated(self._module.tokenize, captions)
        vectors = [self._module.get_text_embedding(captions[i : i + BATCH]) for i in range(0, len(captions), BATCH)]
        return torch.from_numpy(np.concatenate(vectors))


def read_laion_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a LAION checkpoint by the model's names, read without running code from the file.

    Training checkpoints hold NumPy scalars beside the tensors; only those types are allowed.
    """
    if Path(path).suffix == ".safetensors":
        tensors: Mapping[str, Tensor] = load_file(path)
    else:
        scalar = np.core.multiarray.scalar  # type: ignore[attr-defined]  # missing in NumPy's stubs
        scalars = [scalar, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
        with torch.serialization.safe_globals(scalars):
            content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = content.get("state_dict", content)
    # ``position_ids`` was a buffer of RoBERTa until transformers 4.31.
    return {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if not name.endswith("embeddings.position_ids")
    }


@dataclass(frozen=True, kw_only=True)
class TransformersClap(Clap):
    """CLAP as transformers implements it: fixed 10 s windows through ``ClapFeatureExtractor`` and ``ClapModel``.

    Its conversion of the music checkpoint is known to collapse: see :func:`.base.check_collapse`.

    Attributes:
        weights: a folder with ``config.json``, weights, tokenizer and ``preprocessor_config.json``, or a hub id in the
            local cache.
    """

    weights: str = "laion/clap-htsat-unfused"

    @property
    def name(self) -> str:
        return f"clap-{Path(self.weights).name}"

    @cached_property
    def fingerprint(self) -> str:
        return digest("transformers-clap", digest_module(self._modules[0]), str(WINDOW), str(self.hop_seconds))

    @cached_property
    def _modules(self) -> tuple[Any, Any]:
        from transformers import ClapModel, ClapProcessor

        model, processor = load_local("transformers_clap.weights", self.weights, ClapModel, ClapProcessor)
        return model.to(self.device).eval(), processor

    @torch.inference_mode()
    def embed_audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """One unit vector for each 10 s window."""
        model, processor = self._modules
        parts = []
        for part in self._window_batches(audio):
            features = processor.feature_extractor(
                [row.numpy() for row in part], sampling_rate=SAMPLE_RATE, return_tensors="pt"
            )
            parts.append(_unit_vectors(model.get_audio_features(**features.to(model.device))))
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """One unit vector for each caption; the tokenizer's first 77 tokens."""
        model, processor = self._modules
        captions = [song.caption for song in songs]
        _warn_truncated(processor.tokenizer, captions)
        tokens = processor.tokenizer(
            captions, padding=True, truncation=True, max_length=TEXT_TOKENS, return_tensors="pt"
        )
        return _unit_vectors(model.get_text_features(**tokens.to(model.device)))


def _unit_vectors(output: Any) -> Tensor:
    """Projected unit vectors, from the tensor that transformers 4 returns or the output object of transformers 5."""
    projected = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(projected, dim=-1).cpu()


def _warn_truncated(tokenizer: Any, captions: list[str]) -> None:
    long = sum(len(ids) > TEXT_TOKENS for ids in tokenizer(captions)["input_ids"])
    if long:
        log.warning(
            "%d of %d captions are longer than CLAP's %d tokens and are truncated", long, len(captions), TEXT_TOKENS
        )
