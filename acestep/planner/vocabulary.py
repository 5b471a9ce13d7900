"""The language model's tokens: special tokens, code tokens, and the bytes of every token.

Works with any tokenizer whose tokens are bytes: byte-level BPE, as Qwen's, or pieces with byte fallback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from acestep.planner.codes import CODES

END = "<|im_end|>"
START = "<|im_start|>"
PAD = "<|endoftext|>"
OPEN, CLOSE = "<think>", "</think>"
FIRST_CODE = "<|audio_code_0|>"

_BYTES: dict[str, int] = {letter: byte for byte, letter in bytes_to_unicode().items()}
"""GPT-2's letter for each byte, inverted."""
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """A tokenizer with code tokens.

    Args:
        tokenizer: has the tokens of the chat template, of the plan and of the codes; see ``extend``.
        source: its file, for messages.

    Attributes:
        codes: number of code tokens that are used, at most 64,000.
        first_code: token of code 0; the others follow it.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | Path = "tokenizer.json") -> None:
        self.tokenizer = tokenizer
        names = (START, END, PAD, CLOSE, FIRST_CODE)
        special = {name: token for name in names if (token := tokenizer.token_to_id(name)) is not None}
        if missing := [name for name in names if name not in special]:
            raise ValueError(
                f"{source}: its tokenizer has no token {missing[0]}; name a 5 Hz language model, or train one from it "
                "with train.py experiment=planner_sft"
            )
        self.end, self.pad, self.close, self.first_code = (special[name] for name in (END, PAD, CLOSE, FIRST_CODE))
        self.size: int = tokenizer.get_vocab_size()
        self.codes = self._count_codes(source)

    def encode(self, text: str) -> list[int]:
        """Tokens of ``text`` without added special tokens; names of special tokens in it become those tokens."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def encode_lines(self, text: str) -> list[int]:
        """Tokens of ``text``, encoded line by line, so that no token spans the end of a line.

        Qwen's tokenizer splits there in any case; other tokenizers may not.
        """
        return [token for line in text.splitlines(keepends=True) for token in self.encode(line)]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of ``tokens``, special ones by their names; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes[token] for token in tokens).decode("utf-8", errors="replace")

    def code_tokens(self, codes: Iterable[int]) -> list[int]:
        return [self.first_code + code for code in codes]

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token."""
        names = {token: name for name, token in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        added = self.tokenizer.get_added_tokens_decoder()
        decoder = json.dumps(json.loads(self.tokenizer.to_str())["decoder"])
        to_bytes = _byte_level if "ByteLevel" in decoder else _piece
        return [
            added[token].content.encode() if token in added else to_bytes(names.get(token, ""))
            for token in range(self.size)
        ]

    @cached_property
    def text_tokens(self) -> list[int]:
        """The tokens of ordinary text: all but the added ones."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token for token in range(self.size) if token not in added and self.token_bytes[token]]

    def _count_codes(self, source: str | Path) -> int:
        count = 1
        while count < CODES and self.tokenizer.id_to_token(self.first_code + count) == f"<|audio_code_{count}|>":
            count += 1
        if count < CODES and self.tokenizer.token_to_id(f"<|audio_code_{count}|>") is not None:
            raise ValueError(f"{source}: its code tokens are not consecutive; extend a tokenizer that has none")
        return count


def read_tokenizer(folder: Path, key: str) -> Tokenizer:
    """The tokenizer in ``folder``; ``key`` is the config key that names the folder, for messages."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{key}={folder}: has no tokenizer.json; copy the whole folder of the model")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{key}={folder}: no tokenizer.json ({error}); copy the whole folder again") from error


def extend(tokenizer: Tokenizer, codes: int) -> Tokenizer:
    """Add what ``tokenizer`` lacks of the tokens of the chat template, of the plan, and of ``codes`` codes."""
    if not 1 <= codes <= CODES:
        raise ValueError(f"codes={codes}: need 1 to {CODES}")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (PAD, START, END)])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in (OPEN, CLOSE)])
    names = [f"<|audio_code_{code}|>" for code in range(codes)]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _byte_level(name: str) -> bytes:
    return bytes(_BYTES[letter] for letter in name)


def _piece(name: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
