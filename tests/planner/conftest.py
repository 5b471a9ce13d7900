"""Makes ``tiny_language`` importable for the tests of this folder, and shares one model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_language import language_model

from acestep.planner.model import LanguageModel


@pytest.fixture(scope="session")
def language() -> LanguageModel:
    """Random weights, 1,000 codes. Not to be written to."""
    return language_model()
