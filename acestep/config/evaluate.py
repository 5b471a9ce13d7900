"""What ``evaluate.py`` does: a config to songs, numbers and a report in one folder."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from acestep.config.folder import write
from acestep.config.infer import machine
from acestep.config.run import build
from acestep.config.sampling import build_sampler
from acestep.evaluation.report import Part, write_report
from acestep.evaluation.results import Results
from acestep.pipeline import Pipeline


def measure(cfg: DictConfig) -> tuple[Results, Path]:
    """Evaluate what ``cfg`` describes; returns the results and the report's path."""
    out = Path(cfg.out)
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    evaluation = build(cfg.eval)
    where = machine(cfg.device, cfg.dtype)
    pipeline = Pipeline.from_pretrained(cfg.weights, where["device"], where["dtype"], cfg.padding)
    sampler = build_sampler(settings, pipeline.sampler)
    write(out / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    results = evaluation(pipeline, sampler, out)
    results.write(out)
    report = write_report([Part(results, songs=evaluation.songs_in_report)], out, f"Evaluation of {cfg.weights}")
    return results, report
