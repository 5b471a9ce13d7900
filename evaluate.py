"""Scores a model: ``python evaluate.py weights=... eval=micro sweep=cfg out=DIR``. ``--help`` shows every key."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.run import hydra_program


@hydra_program("evaluate")
def evaluate(cfg: DictConfig) -> None:
    """Generate and score every prompt at every sweep point; a run with the same folder continues."""
    from acestep.cli.evaluate import run_evaluation  # here, so that --help does not import torch

    result = run_evaluation(cfg)
    if result is None:
        return
    results, report = result
    for point in results.points:
        intervals = {name: results.interval(name, point) for name in results.headlines}
        scores = [f"{name} {one.mean:.3f} ({one.low:.3f} to {one.high:.3f})" for name, one in intervals.items() if one]
        distances = [f"{name} {next(iter(values.values())):.4g}" for name, values in results.sets[point].items()]
        print(f"{point}:  {'  '.join([*scores, *distances])}")
    if results.info.left_out:
        print(f"left out, for the reasons given above: {', '.join(results.info.left_out)}")
    for line in results.summary()["advice"]:
        print(f"note: {line}")
    print(report)


if __name__ == "__main__":
    evaluate()
