"""Train: `python train.py experiment=micro_sft data.path=STORE run.dir=runs/mine`. `--help` explains every key."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.run import build_job, build_nodes, build_values, hydra_program


@hydra_program("train")
def train(cfg: DictConfig) -> bool:
    """Build the objects, open the run folder, train, write the result; returns whether training reached its end."""
    from acestep.config.run_dir import command_line, open_run_dir  # late, so that --help loads no torch
    from acestep.training.fit import fit
    from acestep.training.run_card import write_card

    nodes = build_nodes(cfg)
    job = build_job(cfg, nodes)
    trainer = nodes["trainer"](build_values(cfg.callbacks), build_values(cfg.logger))
    run = open_run_dir(
        cfg, {"data": job.data.facts()}
    )  # after everything that can be refused: a mistake leaves no folder
    finished = fit(trainer, job.module, job.data, run.checkpoint, run.last)
    if finished:
        job.save(trainer, run.weights)
        write_card(run.path, job.module, trainer)
    elif trainer.is_global_zero:
        print(f"stopped after {trainer.global_step} steps; to resume: {command_line()}")
    return finished


if __name__ == "__main__":
    train()
