"""Configs without a command line: the same composition that the mains get."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from acestep.config import registry
from acestep.config.run import CONFIGS


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config ``name`` with ``overrides``, as its main would see it."""
    registry.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(overrides))
