"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from tiny import write_tiny

# A first call compiles and imports, and a shared machine pauses: time is no property of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint folder of random weights, with every structure of the real one. Not to be written to."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")
