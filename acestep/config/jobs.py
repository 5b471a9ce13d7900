"""From ``train.yaml`` to a training."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.run import build
from acestep.training.module import Optimization
from acestep.training.tasks import Job, Parts


def build_job(cfg: DictConfig) -> Job:
    """The training that ``cfg`` describes."""
    if cfg.seed < 0:
        raise ValueError(f"seed={cfg.seed}: need >= 0")
    parts = Parts(
        weights=cfg.weights,
        start=cfg.network,
        model=build(cfg.model),
        trainable=cfg.trainable,
        adapter=build(cfg.adapter) or None,
        objective=build(cfg.objective),
        data=build(cfg.data),
        optimization=Optimization(optimizer=build(cfg.optimizer), lr=build(cfg.lr)),
        trainer=build(cfg.trainer),
        seed=cfg.seed,
    )
    return build(cfg.task)(parts)
