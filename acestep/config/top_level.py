"""Top-level keys of ``train.yaml``: what every run says beside its groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from acestep.training.fit import Start


class Resume(Enum):
    """What to do in a run folder that is there already: ``auto`` goes on where it stopped, ``never`` refuses it."""

    auto = "auto"
    never = "never"


@dataclass
class RunKeys:
    """``dir`` holds all that a run writes."""

    dir: str = MISSING


@dataclass
class TrainKeys:
    """``train.yaml`` gives the values and tells what they mean; groups stay open, for their own schemas to check."""

    name: str = MISSING
    seed: int = 0
    weights: str = MISSING
    network: Start = Start.pretrained
    trainable: str = MISSING
    run: RunKeys = field(default_factory=RunKeys)
    resume: Resume = Resume.auto
    reproduce: str | None = None
    score: str = MISSING
    task: Any = MISSING
    language: Any = field(default_factory=dict)
    model: Any = MISSING
    adapter: Any = field(default_factory=dict)
    timesteps: Any = MISSING
    weighting: Any = MISSING
    objective: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    lr: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
