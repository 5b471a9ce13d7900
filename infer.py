"""Makes a song from words: ``python infer.py song.caption="..." out=song.flac``. ``--help`` shows every key."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.run import main


@main("infer")
def infer(cfg: DictConfig) -> None:
    """One song to one file."""
    from acestep.config.infer import make  # here, so that --help need not load torch

    made = make(cfg)
    print(f"{made.path}  ({made.song.seconds:.1f} s of music in {made.seconds_used:.1f} s)")


if __name__ == "__main__":
    infer()
