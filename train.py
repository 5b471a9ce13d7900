"""Train: `python train.py experiment=micro_sft data.path=STORE run.dir=runs/mine`. `--help` teaches the rest."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.folder import start
from acestep.config.run import build, built_values, check, main
from acestep.data import autoencoder_settings
from acestep.training.data import LatentData
from acestep.training.dit import DiTModule, Optimization
from acestep.training.fit import fit, load_pipeline, save_result, select_trained


@main("train")
def train(cfg: DictConfig) -> None:
    """Build the parts, open the run folder, train, write the result."""
    check(cfg)
    pipeline = load_pipeline(cfg.weights, build(cfg.model), cfg.network, cfg.seed)
    adapter = build(cfg.adapter) or None
    select_trained(pipeline.network, cfg.trainable, adapter, cfg.seed)
    data = LatentData(build(cfg.data), cfg.seed)
    data.store.check(autoencoder_settings(pipeline.autoencoder))
    optimization = Optimization(optimizer=build(cfg.optimizer), lr=build(cfg.lr))
    module = DiTModule(pipeline, build(cfg.objective), optimization, cfg.seed)

    run = start(cfg, {"data": data.facts()})
    trainer = build(cfg.trainer)(built_values(cfg.callbacks), built_values(cfg.logger))
    fit(trainer, module, data, run.checkpoint, run.last)
    if trainer.is_global_zero:
        save_result(pipeline, run.weights, adapter, cfg.weights)


if __name__ == "__main__":
    train()
