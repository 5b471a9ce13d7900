"""The frozen text encoder: Qwen3-Embedding with its tokenizer, from a folder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen3Model
from transformers.utils import logging

PAD = "<|endoftext|>"
CACHE_BYTES = 256 * 2**20


class TextEncoder(nn.Module):
    """Strings to features: last hidden states for prompts, input embeddings for lyrics.

    Upstream runs the network without an attention mask; it is causal and padding is on the right, so valid rows do
    not depend on it. Each text is therefore run alone: its rows are the same in any batch, and are cached for the
    next epoch.

    Args:
        folder: a Hugging Face Qwen3 folder: ``config.json``, ``*.safetensors``, ``tokenizer.json`` (or, as in
            diffusers' layout, ``../tokenizer/tokenizer.json``). The tokenizer must append the end token itself, as
            the published one does.
        dtype: of the weights and of the features.
        max_text_tokens: ``states`` truncates on the right to this many tokens, the end token included.
        max_lyric_tokens: likewise for ``embed``.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        max_text_tokens: int = 256,
        max_lyric_tokens: int = 2048,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.max_text_tokens = max_text_tokens
        self.max_lyric_tokens = max_lyric_tokens
        self.tokenizer = _tokenizer(self.folder)
        self.pad_id = self.tokenizer.token_to_id(PAD)
        with _no_progress_bar():
            self.network = Qwen3Model.from_pretrained(self.folder, dtype=dtype, local_files_only=True)
        self.network.requires_grad_(False).eval()
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._cache_bytes = 0

    @property
    def width(self) -> int:
        """Features per token."""
        return self.network.config.hidden_size

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in evaluation mode, since the encoder is frozen."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextEncoder:
        self._cache.clear()
        self._cache_bytes = 0
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def states(
        self, texts: Sequence[str], encode_padding: bool = False, min_length: int = 0
    ) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Last hidden states (after the final norm) of each text, right padded, and the mask of valid rows.

        Padding rows are zero. With ``encode_padding``, pad tokens run through the network too, as upstream does, which
        matters only where a DiT attends to them (``padding=upstream``), and there are at least ``min_length`` rows.
        """
        if encode_padding:
            ids, mask = self._padded([self._tokens(text, self.max_text_tokens) for text in texts], min_length)
            return self.network(input_ids=ids).last_hidden_state, mask
        rows = [self._states_of(text) for text in texts]
        lengths = torch.tensor([len(row) for row in rows], device=self.network.device)
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return states, torch.arange(states.shape[1], device=states.device) < lengths[:, None]

    @torch.no_grad()
    def embed(
        self, texts: Sequence[str], max_length: int | None = None, min_length: int = 0
    ) -> tuple[Float[Tensor, "b l d"], Bool[Tensor, "b l"]]:
        """Rows of the input embedding table for each text's tokens, right padded with the pad token's row, and mask.

        At most ``max_length`` rows (default ``max_lyric_tokens``), and at least ``min_length``.
        """
        ids, mask = self._padded(
            [self._tokens(text, max_length or self.max_lyric_tokens) for text in texts], min_length
        )
        return self.network.embed_tokens(ids), mask

    def count_tokens(self, text: str) -> int:
        """Tokens in ``text`` before any truncation, the end token included."""
        return len(self.tokenizer.encode(text).ids)

    def _states_of(self, text: str) -> Float[Tensor, "l d"]:
        if text in self._cache:
            self._cache.move_to_end(text)
            return self._cache[text]
        ids = torch.tensor([self._tokens(text, self.max_text_tokens)], device=self.network.device)
        states = self.network(input_ids=ids).last_hidden_state[0]
        self._cache[text] = states
        self._cache_bytes += states.nbytes
        while self._cache_bytes > CACHE_BYTES:
            self._cache_bytes -= self._cache.popitem(last=False)[1].nbytes
        return states

    def _tokens(self, text: str, max_length: int) -> list[int]:
        self.tokenizer.enable_truncation(max_length)
        ids = self.tokenizer.encode(text).ids
        self.tokenizer.no_truncation()
        return ids

    def _padded(self, ids: list[list[int]], min_length: int = 0) -> tuple[Tensor, Tensor]:
        longest = max(min_length, *map(len, ids))
        padded = torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
        return padded.to(self.network.device), mask.to(self.network.device)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(folder: Path) -> Tokenizer:
    paths = (folder / "tokenizer.json", folder.parent / "tokenizer" / "tokenizer.json")
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"{paths[0]}: the text encoder's tokenizer is missing; copy the whole text encoder folder")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    if tokenizer.token_to_id(PAD) is None:
        raise ValueError(f"{path}: has no token {PAD}; this is not a tokenizer of Qwen3-Embedding's kind")
    return tokenizer
