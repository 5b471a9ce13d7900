"""Train: `python train.py experiment=micro_sft data.path=STORE run.dir=runs/mine`. `--help` teaches the rest."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.jobs import build_job
from acestep.config.run import build, built_values, check, main
from acestep.config.run_dir import again, start
from acestep.training.fit import fit
from acestep.training.run_card import write_card


@main("train")
def train(cfg: DictConfig) -> bool:
    """Build the parts, open the run folder, train, write the result; says whether the end was reached."""
    check(cfg)
    job = build_job(cfg)
    trainer = build(cfg.trainer)(built_values(cfg.callbacks), built_values(cfg.logger))
    run = start(cfg, {"data": job.data.facts()})  # last of what can be refused, so that a mistake leaves no folder
    finished = fit(trainer, job.module, job.data, run.checkpoint, run.last)
    if finished:
        job.save(trainer, run.weights)
        write_card(run.path, job.module, trainer)
    elif trainer.is_global_zero:
        print(f"stopped after {trainer.global_step} steps; to go on: {again()}")
    return finished


if __name__ == "__main__":
    train()
