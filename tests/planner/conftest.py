"""Makes ``tiny_language`` importable in this folder, and a shared language model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_language import language_model

from acestep.planner.model import LanguageModel


@pytest.fixture(scope="session")
def language() -> LanguageModel:
    """A language model of random weights with 1,000 codes. Read-only."""
    return language_model()
