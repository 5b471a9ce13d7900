"""A small real evaluation: a tiny pipeline, songs of the micro world, oracles fitted on a few of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.evaluation.embedders.micro_clap import MicroClap
from acestep.evaluation.metrics import ClapAdherence, FrechetDistance, OracleAdherence
from acestep.evaluation.prompts import EvaluationPrompt, FolderPrompts
from acestep.evaluation.results import Results
from acestep.evaluation.suite import Evaluation
from acestep.pipeline.pipeline import Pipeline
from acestep.synth import Oracles, draw_song, render_song, write_world
from acestep.synth.oracles import labelled_features
from acestep.weights.checkpoint import Lengths

SONGS = 5


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Some tests fork: torch's threads do not come along, and a child would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of micro-world songs with sidecars. Not to be written to."""
    return write_world(tmp_path_factory.mktemp("world") / "songs", SONGS, seed=3)


@pytest.fixture(scope="session")
def pipeline(tiny: Path) -> Pipeline:
    """Random weights that make songs as long as the micro world's."""
    lengths = Lengths(min_seconds=0.4, max_seconds=10.0, default_seconds=0.8)
    return replace(Pipeline.from_pretrained(tiny), lengths=lengths)


@pytest.fixture(scope="session")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """The micro world's metrics: oracles fitted on 24 songs, and the shipped towers."""
    folder = tmp_path_factory.mktemp("scorers")
    examples = []
    for index in range(24):
        truth, _ = draw_song(99, index)
        examples.append(labelled_features(truth, torch.from_numpy(render_song(truth))))
    Oracles.fit(examples).save(folder / "oracles.safetensors")
    clap = MicroClap()
    return {
        "adherence": OracleAdherence(weights=str(folder / "oracles.safetensors")),
        "clap": ClapAdherence(embedder=clap),
        "fad": FrechetDistance(embedder=clap),
    }


@pytest.fixture(scope="session")
def evaluation(world: Path, metrics: Mapping[str, object]) -> Evaluation:
    """Two guidance scales over all songs of the world."""
    return Evaluation(
        prompts=FolderPrompts(path=str(world)), metrics=metrics, sweep={"guidance": {"scale": [1.0, 3.0]}}, batch_size=2
    )


@pytest.fixture(scope="session")
def whole_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``whole``."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="session")
def whole(evaluation: Evaluation, pipeline: Pipeline, whole_out: Path) -> Results:
    """The evaluation run in one go, and written. Not to be changed."""
    results = evaluation(pipeline, pipeline.sampler, whole_out)
    results.write(whole_out)
    return results


@pytest.fixture(scope="session")
def prompts(world: Path, pipeline: Pipeline) -> list[EvaluationPrompt]:
    """The world's songs as prompts."""
    return FolderPrompts(path=str(world)).load(pipeline.lengths)
