"""Makes songs from words: ``python infer.py song.caption="..." out=song.flac``. ``--help`` shows every key."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from acestep.config.run import main


@main("infer")
def infer(cfg: DictConfig) -> None:
    """One song to one file, or a list of songs to a folder."""
    from acestep.cli.generate import make  # here, so that --help need not load torch

    status = make(cfg, lambda line: print(line, flush=True))
    if status:
        sys.exit(status)


if __name__ == "__main__":
    infer()
