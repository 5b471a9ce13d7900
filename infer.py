"""Generates songs: ``python infer.py song.caption="..." out=song.flac``. ``--help`` explains every key."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from acestep.config.run import hydra_program


@hydra_program("infer")
def infer(cfg: DictConfig) -> None:
    """One song to a file, or a list of songs to a folder."""
    from acestep.cli.generate import generate  # here, so that --help does not import torch

    status = generate(cfg)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    infer()
