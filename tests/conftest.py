"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint folder of random weights, with every structure of the real one. Not to be written to."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")
