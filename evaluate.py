"""Scores a model: ``python evaluate.py weights=... eval=micro sweep=cfg out=DIR``. ``--help`` shows every key."""

from __future__ import annotations

from omegaconf import DictConfig

from acestep.config.run import main


@main("evaluate")
def evaluate(cfg: DictConfig) -> None:
    """Every prompt under every setting, scored; the same folder again goes on where it stopped."""
    from acestep.cli.evaluate import measure  # here, so that --help need not load torch

    found = measure(cfg)
    if found is None:
        return
    results, report = found
    for cell in results.cells:
        scores = [(name, results.interval(name, cell)) for name in results.headlines]
        shown = [f"{name} {score.mean:.3f} ({score.low:.3f} to {score.high:.3f})" for name, score in scores if score]
        distances = [f"{name} {next(iter(values.values())):.4g}" for name, values in results.sets[cell].items()]
        print(f"{cell}:  {'  '.join([*shown, *distances])}")
    if results.setting.left_out:
        print(f"left out, for the reasons given above: {', '.join(results.setting.left_out)}")
    for line in results.summary()["advice"]:
        print(f"note: {line}")
    print(report)


if __name__ == "__main__":
    evaluate()
