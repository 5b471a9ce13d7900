"""The language model's tokens as the planner sees them: which ones are codes, which ones end things, what each spells.

Any tokenizer that spells its tokens in bytes will do: byte-level BPE, as Qwen's, or pieces with byte fallback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from acestep.planner.codes import CODES

END = "<|im_end|>"
START = "<|im_start|>"
PAD = "<|endoftext|>"
OPEN, CLOSE = "<think>", "</think>"
FIRST_CODE = "<|audio_code_0|>"

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Vocabulary:
    """A tokenizer with code tokens.

    Args:
        tokenizer: has the chat's, the plan's and the codes' tokens; see ``extend``.
        source: where it comes from, for messages.

    Attributes:
        codes: how many codes it spells, at most 64,000.
        first_code: token of code 0; the others follow it.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | Path = "tokenizer.json") -> None:
        self.tokenizer = tokenizer
        found = {name: tokenizer.token_to_id(name) for name in (START, END, PAD, CLOSE, FIRST_CODE)}
        missing = [name for name, token in found.items() if token is None]
        if missing:
            raise ValueError(
                f"{source}: its tokenizer has no token {missing[0]}; name a 5 Hz language model, or make one of it by "
                "train.py experiment=planner_sft"
            )
        self.end, self.pad, self.close, self.first_code = (found[name] for name in (END, PAD, CLOSE, FIRST_CODE))
        self.size = tokenizer.get_vocab_size()
        self.codes = self._count_codes(source)

    def encode(self, text: str) -> list[int]:
        """Tokens of ``text``, nothing added; the names of special tokens in it become those tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_lines(self, text: str) -> list[int]:
        """Tokens of ``text``, each line by itself, so that no token reaches past the end of a line.

        Qwen's tokenizer splits there anyway, whatever follows; others are made to.
        """
        return [token for line in text.splitlines(keepends=True) for token in self.encode(line)]

    def decode(self, tokens: Iterable[int]) -> str:
        """What ``tokens`` spell, special ones by their names; bytes that are no characters become U+FFFD."""
        return b"".join(self.spelling[token] for token in tokens).decode("utf-8", errors="replace")

    def code_tokens(self, codes: Iterable[int]) -> list[int]:
        """The token of each code."""
        return [self.first_code + code for code in codes]

    @cached_property
    def spelling(self) -> list[bytes]:
        """The bytes of every token."""
        names = {token: name for name, token in self.tokenizer.get_vocab(with_added_tokens=True).items()}
        added = self.tokenizer.get_added_tokens_decoder()
        decoder = json.dumps(json.loads(self.tokenizer.to_str())["decoder"])
        spell = _byte_level if "ByteLevel" in decoder else _piece
        words = [spell("" if token in added else names.get(token, "")) for token in range(self.size)]
        return [added[token].content.encode() if token in added else word for token, word in enumerate(words)]

    @cached_property
    def words(self) -> list[int]:
        """The tokens that text is made of: all that were not added by name."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token for token in range(self.size) if token not in added and self.spelling[token]]

    def _count_codes(self, source: str | Path) -> int:
        count = 1
        while count < CODES and self.tokenizer.id_to_token(self.first_code + count) == f"<|audio_code_{count}|>":
            count += 1
        if count < CODES and self.tokenizer.token_to_id(f"<|audio_code_{count}|>") is not None:
            raise ValueError(f"{source}: its code tokens are not in a row; extend a tokenizer that has none")
        return count


def read_tokenizer(folder: Path, key: str) -> Tokenizer:
    """The ``tokenizer.json`` in ``folder``, which ``key`` names."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{key}={folder}: has no tokenizer.json; copy the whole folder of the model")
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{key}={folder}: no tokenizer.json ({error}); copy the whole folder again") from error


def extend(tokenizer: Tokenizer, codes: int) -> Tokenizer:
    """``tokenizer`` with what it lacks of the chat's and the plan's tokens, and a token for each of ``codes`` codes."""
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
    found = _BYTE_PIECE.fullmatch(name)
    return bytes([int(found[1], 16)]) if found else name.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte, inverted: printable bytes stand for themselves, the others for U+0100 and on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
assert _BYTES.keys() == set(pre_tokenizers.ByteLevel.alphabet())
