"""The golden data in the repository is complete: a kind without cases would be skipped silently."""

from __future__ import annotations

import pytest
from golden import REPOSITORY, cases

COPY = REPOSITORY / "tests" / "golden"
KINDS = (
    *("decoder", "condition", "tokenizer", "generate", "turbo", "flow_edit", "train"),
    *("encode", "decode", "tiled", "intermediates"),
    *("guidance", "dcw", "noise", "repaint", "timesteps"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_cases(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("golden.root", lambda: COPY)
    assert cases(kind)


def test_text_has_cases() -> None:
    assert list((COPY / "text").glob("*.json"))


def test_copy_is_small() -> None:
    assert sum(path.stat().st_size for path in COPY.rglob("*")) < 6_000_000
