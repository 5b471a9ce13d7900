"""The two-tower model of the micro world as an embedder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import Embedder, MissingWeightsError
from acestep.evaluation.embedders.two_tower import TwoTower, load_two_tower, text_token_ids, window_spectra
from acestep.evaluation.hashing import digest, digest_module
from acestep.songs import Song
from acestep.synth.world import draw_song

SHIPPED = Path(__file__).parents[2] / "assets" / "micro_clap" / "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class MicroClap(Embedder):
    """The shipped two-tower model, or one trained by :mod:`.train_micro_clap`.

    Attributes:
        weights: file written by :func:`.two_tower.save_two_tower`.
    """

    weights: str = str(SHIPPED)
    name = "clap-micro"
    thread_safe = True
    unrelated = tuple(draw_song(0, index)[1] for index in range(16))

    @cached_property
    def fingerprint(self) -> str:
        config = str(sorted(asdict(self._towers.config).items()))
        return digest("micro-clap", digest_module(self._towers), config)

    @cached_property
    def _towers(self) -> TwoTower:
        if not Path(self.weights).is_file():
            raise MissingWeightsError(
                f"metrics.clap.embedder.weights={self.weights}: no such file; the repository carries it as "
                "acestep/assets/micro_clap/model.safetensors, and "
                "`python -m acestep.evaluation.embedders.train_micro_clap` trains it"
            )
        return load_two_tower(self.weights).eval()

    @torch.inference_mode()
    def embed_audio(self, audio: Audio) -> Float[Tensor, "w d"]:
        """One unit vector for each window."""
        return self._towers.encode_audio(window_spectra(self._towers, audio))

    @torch.inference_mode()
    def embed_text(self, songs: Sequence[Song]) -> Float[Tensor, "b d"]:
        """One unit vector for each song's caption, lyrics, tempo and key."""
        return self._towers.encode_text(text_token_ids(songs, self._towers.config))
