"""The demonstration: from nothing but the shipped base to a fine-tuned model, a LoRA, a guidance sweep and a report.

Every stage is a command that anyone can give by hand; a stage that is done is not done again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from acestep.cli.demo_summary import DemoResults, demo_summary
from acestep.data.preprocess import Preprocess
from acestep.evaluation.embedders.micro_clap import MicroClapSpec
from acestep.evaluation.metrics.core import ClapAdherence, FrechetDistance, OracleAdherence
from acestep.evaluation.prompts import MicroPrompts
from acestep.evaluation.report.html import Part, write_report
from acestep.evaluation.results import Results
from acestep.evaluation.suite import Evaluation
from acestep.files import write_json
from acestep.pipeline.build import load_autoencoder
from acestep.pipeline.pipeline import Pipeline
from acestep.synth import INSTRUMENTS, UNSEEN_INSTRUMENT, write_world

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Sizes of the demonstration.

    Args:
        songs: well-described songs to fine-tune on.
        style_songs: songs of the sub-style to train the LoRA on.
        prompts: unseen songs to ask for; the intervals of the summary run over them.
        style_prompts: unseen songs of the sub-style to ask for.
        scales: guidance scales of the sweep; 1, which is no guidance, must be among them.
        base_scales: guidance scales at which the base is heard.
        overrides: further arguments for both trainings.
        workers: processes that render and encode.
    """

    songs: int = 800
    style_songs: int = 96
    prompts: int = 100
    style_prompts: int = 40
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    base_scales: tuple[float, ...] = (1.0, 3.0, 5.0)
    overrides: tuple[str, ...] = ()
    workers: int = 2

    def __call__(self, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
        """Run everything that ``folder`` does not hold yet; returns the summary, also in ``summary.json``."""
        clock = Clock(folder / "seconds.json")
        sets = {"sft": (self.songs, 301, INSTRUMENTS), "style": (self.style_songs, 302, (UNSEEN_INSTRUMENT,))}
        with clock("synth"):
            for name, (songs, seed, instruments) in sets.items():
                tell(f"writing {songs} songs to {folder / 'songs' / name}, and their latents beside them")
                source = write_world(
                    folder / "songs" / name, songs, seed, instruments=instruments, workers=self.workers
                )
                Preprocess(workers=self.workers)(
                    source, folder / "latents" / name, partial(load_autoencoder, "micro_base")
                )
        with clock("sft"):
            tell("fine-tuning the shipped base on the well-described songs")
            self._train("micro_sft", "micro_base", folder / "latents" / "sft", folder / "sft")
        with clock("lora"):
            tell(
                f"training a LoRA on {self.style_songs} songs with {UNSEEN_INSTRUMENT}, which the model has never heard"
            )
            self._train("micro_lora", str(folder / "sft"), folder / "latents" / "style", folder / "lora")
        with clock("sweep"):
            found = self._evaluate(folder, tell)
        history = json.loads((folder / "sft" / "validation.json").read_text(encoding="utf-8"))["val_loss"]
        summary = demo_summary(found, clock.seconds, history)
        write_json(folder / "summary.json", summary)
        found.sft.write(folder / "sweep" / "sft")
        parts = [
            Part(found.sft, "Guidance and fine-tuning", name="fine-tuned", compare={"base": found.base}),
            Part(
                found.style_lora,
                "A style the model had never heard",
                name="with LoRA",
                compare={"without LoRA": found.style_sft},
                songs=4,
            ),
        ]
        tell(f"report: {write_report(parts, folder, 'ACE-Step in the micro world')}")
        return summary

    def _train(self, experiment: str, weights: str, latents: Path, run: Path) -> None:
        arguments = [f"experiment={experiment}", f"weights={weights}", f"data.path={latents}", f"run.dir={run}"]
        if (run / "weights").is_dir():
            return
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments, *self.overrides], check=False)
        if done.returncode:
            raise ValueError(f"train.py {' '.join(arguments)}: ended with exit status {done.returncode}; see above")

    def _evaluate(self, folder: Path, tell: Callable[[str], None]) -> DemoResults:
        usual = MicroPrompts(path=str(folder / "songs" / "prompts"), songs=self.prompts, seed=20_000)
        style = MicroPrompts(
            path=str(folder / "songs" / "style_prompts"),
            songs=self.style_prompts,
            seed=21_000,
            instruments=(UNSEEN_INSTRUMENT,),
        )

        def heard(name: str, weights: str, prompts: MicroPrompts, scales: tuple[float, ...]) -> Results:
            tell(f"{name}: {prompts.songs} songs at guidance {', '.join(f'{scale:g}' for scale in scales)}")
            pipeline = Pipeline.from_pretrained(weights)
            metrics = {
                "adherence": OracleAdherence(),
                "clap": ClapAdherence(embedder=MicroClapSpec()),
                "fad": FrechetDistance(embedder=MicroClapSpec()),
            }
            evaluation = Evaluation(prompts=prompts, metrics=metrics, sweep={"guidance": {"scale": scales}})
            return evaluation(pipeline, pipeline.sampler, folder / "sweep" / name)

        own = (Pipeline.from_pretrained(str(folder / "sft")).sampler.guidance.scale,)
        return DemoResults(
            sft=heard("sft", str(folder / "sft"), usual, self.scales),
            base=heard("base", "micro_base", usual, self.base_scales),
            style_sft=heard("style_sft", str(folder / "sft"), style, own),
            style_lora=heard("style_lora", str(folder / "lora"), style, own),
        )


class Clock:
    """Seconds that each stage took, kept in a file so that a demonstration resumed adds to what it took before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of what runs inside to ``stage`` and to ``total``."""
        start = time.monotonic()
        try:
            yield
        finally:
            for name in (stage, "total"):
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            write_json(self.path, self.seconds)


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary's main points, for a terminal."""
    found, lora = summary["adherence"], summary["lora"]
    return [
        f"prompt adherence at guidance {found['best_scale']:g}: {found['at_best']:.3f}  (without guidance "
        f"{found['at_1']:.3f}, base at its best {found['base_at_best']:.3f}, prompts shuffled {found['shuffled']:.3f}, "
        f"chance {found['chance']:.3f}, ceiling {found['ceiling']:.3f})",
        f"adherence to the new style: {lora['sft']:.3f} before the LoRA, {lora['lora']:.3f} with it",
        f"{summary['seconds']['total']:.0f} s in all",
    ]
