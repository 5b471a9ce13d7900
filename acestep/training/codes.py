"""The audio codes of every song of a latent store, made once by a checkpoint's tokenizer and kept beside the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from acestep.data import LatentStore
from acestep.files import atomic
from acestep.models.acestep import AceStep
from acestep.planner.hints import audio_codes


class SongCodes:
    """Codes by the song's row in the store; what a run asks for first is what takes long.

    They are functions of the latents' means, so that a song always has the same ones. Kept in
    ``STORE/.codes/NAME.npz``, where ``NAME`` is of the tokenizer's weights and the store's settings.
    """

    def __init__(self, store: LatentStore, network: AceStep, silence: Float[Tensor, "1 ts c"]) -> None:
        self.fingerprint = _fingerprint(store, network, silence)
        path = store.folder / ".codes" / f"{self.fingerprint}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                flat, offsets = file["codes"], file["offsets"]
            if len(offsets) == len(store) + 1:
                self._flat, self._offsets = flat, offsets
                return
        made = [_codes(store, row, network, silence) for row in range(len(store))]
        self._flat = np.concatenate(made)
        self._offsets = np.cumsum([0, *map(len, made)])
        with atomic(path) as aside, aside.open("wb") as file:
            np.savez(file, codes=self._flat, offsets=self._offsets)

    def __getitem__(self, row: int) -> list[int]:
        """The codes of one song."""
        return self._flat[self._offsets[row] : self._offsets[row + 1]].tolist()

    def used(self, rows: Sequence[int], size: int) -> dict[str, float]:
        """Which share of ``size`` codes these songs use, and their perplexity: that many used evenly."""
        counts = torch.zeros(size)
        for row in rows:
            counts += torch.bincount(torch.tensor(self[row]), minlength=size)
        return code_use(counts)


def code_use(counts: Float[Tensor, " n"]) -> dict[str, float]:
    """Share of the codes that were used at all, and the perplexity of their use."""
    shares = counts / counts.sum().clamp(min=1)
    perplexity = float(torch.exp(-torch.xlogy(shares, shares).sum()))
    return {"share": float((counts > 0).float().mean()), "perplexity": perplexity}


def _codes(store: LatentStore, row: int, network: AceStep, silence: Tensor) -> np.ndarray:
    mean, _ = store.latents(row)
    (codes,) = audio_codes(network, [torch.tensor(mean, dtype=torch.float32)], silence)
    return np.asarray(codes, dtype=np.uint16)


def _fingerprint(store: LatentStore, network: AceStep, silence: Tensor) -> str:
    digest = hashlib.sha256(f"{store.fingerprint} {len(store)} {''.join(store.sha256)}".encode())
    tensors = {**network.tokenizer.state_dict(), "silence": silence[:, : network.config.pool_window_size]}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
