"""However an evaluation is run, stopped and shared out, its summary is the same to the byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acestep.adapters import LoRA, save_adapter
from acestep.audio.audio import read_audio
from acestep.cli.evaluate import environment_ranks
from acestep.data.preprocess import Preprocess
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.cache import FeatureCache
from acestep.evaluation.prompts import EvaluationPrompt, reference_recordings
from acestep.evaluation.results import Results, merge_results, read_results
from acestep.evaluation.samples import ClipStore
from acestep.evaluation.suite import Evaluation
from acestep.evaluation.sweep import sweep_points
from acestep.files import write_json
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song


def forked(task: Callable[[], None]) -> int:
    """The id of a process that runs ``task`` and ends; 0 is its exit status if the task raised nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            task()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.slow
def test_killed_again_and_again_at_random_it_ends_with_the_same_summary(
    whole: Results, evaluation: Evaluation, pipeline: Pipeline, tmp_path: Path
):
    draw = random.Random(0)
    kills, seconds = 0, 0.3
    for _ in range(40):
        child = forked(lambda: evaluation(pipeline, pipeline.sampler, tmp_path).write(tmp_path))
        stop = time.monotonic() + draw.uniform(0.1, seconds)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < stop:
            time.sleep(0.01)
        if ended != (0, 0):
            assert ended[1] == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills, seconds = kills + 1, seconds * 1.4
    assert kills >= 2
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(whole.summary()))


@pytest.mark.slow
def test_one_rank_and_two_ranks_have_one_summary(
    whole: Results, evaluation: Evaluation, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "shared"

    def run(rank: int) -> None:
        os.environ["RANK"] = str(rank)
        generated: list[int] = []
        generate = ClipStore._generate
        ClipStore._generate = lambda self, clips, *rest: generated.extend([len(clips)]) or generate(self, clips, *rest)
        with environment_ranks() as ranks:
            assert (ranks.rank, ranks.world_size) == (rank, 2)
            results = evaluation(pipeline, pipeline.sampler, out, ranks)
        write_json(tmp_path / f"{rank}.json", {"summary": results.summary(), "generated": generated})

    children = [forked(lambda rank=rank: run(rank)) for rank in (0, 1)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    result = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    expected = json.loads(json.dumps(whole.summary()))
    assert result[0]["summary"] == expected
    assert result[1]["summary"] == expected
    assert all(rank["generated"] for rank in result), "both generated songs"


def test_a_song_that_fails_is_not_tried_again(
    evaluation: Evaluation,
    pipeline: Pipeline,
    prompts: list[EvaluationPrompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    class Two:
        def load(self, lengths: object) -> list[EvaluationPrompt]:
            return prompts[:2]

    generate = Pipeline.generate
    requested: list[int] = []

    def refuses_first(self: Pipeline, songs: list[Song], *args: object, **options: object):
        requested.append(len(songs))
        if any(song.seed == prompts[0].song.seed for song in songs):
            raise ValueError("the sampler left the finite numbers")
        return generate(self, songs, *args, **options)

    monkeypatch.setattr(Pipeline, "generate", refuses_first)
    short = replace(evaluation, prompts=Two(), ceiling=False, sweep={})
    first = short(pipeline, pipeline.sampler, tmp_path).summary()
    assert first["songs"]["excluded"][0]["reason"] == "the sampler left the finite numbers"
    assert (first["songs"]["requested"], first["songs"]["scored"]) == (2, 1)
    requested.clear()
    assert short(pipeline, pipeline.sampler, tmp_path).summary() == first
    assert requested == []


def test_lengths_and_checkpoints_are_swept_with_the_same_noise(
    evaluation: Evaluation, pipeline: Pipeline, tmp_path: Path
):
    by_length = replace(evaluation, sweep={"song": {"seconds": [0.8, 1.6]}}, ceiling=False)
    results = by_length(pipeline, pipeline.sampler, tmp_path)
    assert {round(row.prompt.song.seconds, 6) for row in results.rows} == {0.8, 1.6}
    seeds = {cell: [row.prompt.song.seed for row in results.rows if row.point == cell] for cell in results.points}
    assert len(set(map(tuple, seeds.values()))) == 1
    both = merge_results({"one": results, "two": results})
    assert both.points[0] == "weights=one, song.seconds=0.8"
    assert both.info.points[both.points[-1]] == {"weights": "two", "song.seconds": 1.6}
    assert len(both.rows) == 2 * len(results.rows)
    change = both.summary()["differences"]
    assert next(one["mean"] for one in change if one["cell"] == "weights=two, song.seconds=0.8") == 0.0


def test_an_adapter_is_swept_by_what_is_in_its_file(
    evaluation: Evaluation, tiny: Path, pipeline: Pipeline, tmp_path: Path
):
    trained = Pipeline.from_pretrained(tiny).network.decoder
    LoRA(rank=2)(trained, torch.Generator().manual_seed(0))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5
    save_adapter(trained, tmp_path / "style", str(tiny))
    own = replace(Pipeline.from_pretrained(tiny), lengths=pipeline.lengths)
    uses = [[], [{"path": str(tmp_path / "style"), "scale": 1.0}], [{"path": str(tmp_path / "style"), "scale": 0.0}]]
    results = replace(evaluation, sweep={"adapters": uses}, ceiling=False)(own, own.sampler, tmp_path / "out")
    none, full, zero = ([row for row in results.rows if row.point == cell] for cell in results.points)
    assert all(row.path for row in results.rows)
    sounds = [[read_audio(row.path).samples for row in rows] for rows in (none, full, zero)]
    assert not any(torch.equal(a, b) for a, b in zip(sounds[0], sounds[1], strict=True))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(sounds[0], sounds[2], strict=True))
    store = ClipStore(tmp_path / "out" / "clips", own, 2)
    cells = sweep_points(own.sampler, {"adapters": uses})
    before = store.plan([results.rows[0].prompt], cells[1])[0].key
    next((tmp_path / "style").glob("*.safetensors")).write_bytes(b"other")
    fresh = ClipStore(tmp_path / "out" / "clips", own, 2)
    assert fresh.plan([results.rows[0].prompt], cells[1])[0].key != before
    results.write(tmp_path / "out")
    assert [row.point for row in read_results(tmp_path / "out").rows] == [row.point for row in results.rows]


def test_features_extracted_from_memory_equal_those_of_the_file(
    whole: Results, whole_out: Path, evaluation: Evaluation, pipeline: Pipeline, tmp_path: Path
):
    shutil.copytree(whole_out / "clips", tmp_path / "clips")
    evaluation(pipeline, pipeline.sampler, tmp_path)
    result, expected = (
        {path.relative_to(out): path.read_bytes() for path in (out / "heard").rglob("*.safetensors")}
        for out in (tmp_path, whole_out)
    )
    assert len(expected) > 2 * len(whole.rows), "by two extractors, and the recordings"
    assert result == expected


def test_results_come_back_from_their_folder(whole: Results, whole_out: Path, tmp_path: Path):
    again = read_results(whole_out)
    assert [row.path for row in again.rows] == [row.path for row in whole.rows]
    for column in whole.columns:
        for cell in whole.points:
            assert again.values(column, cell) == pytest.approx(whole.values(column, cell))
            assert again.values(column, cell, shuffled=True) == pytest.approx(whole.values(column, cell, shuffled=True))
    assert json.dumps(again.summary()["cells"]) == json.dumps(whole.summary()["cells"])
    assert again.info == whole.info
    with pytest.raises(ValueError, match=r"compare=.*no finished evaluation"):
        read_results(tmp_path / "none")


def test_a_latent_store_and_kept_statistics_are_references_too(
    evaluation: Evaluation, pipeline: Pipeline, world: Path, whole: Results, whole_out: Path, tmp_path: Path
):
    store = tmp_path / "store"
    Preprocess()(world, store, lambda: pipeline.autoencoder)
    paths = reference_recordings(str(store), pipeline, tmp_path / "decoded", Ranks())
    assert len(paths) == 5
    recording = read_audio(world / "000000.flac")
    coded = pipeline.decode(pipeline.encode(recording).mean)[0].clamp(-1, 1)
    result = min(float((read_audio(path).samples - coded).abs().mean()) for path in paths if _as_long(path, coded))
    assert result < 1e-2
    assert reference_recordings(str(world), pipeline, tmp_path, Ranks()) == [p.recording for p in _prompts(whole)]
    with pytest.raises(ValueError, match=r"none: not a folder"):
        reference_recordings(str(tmp_path / "decoded" / "none"), pipeline, tmp_path, Ranks())
    metric = replace(evaluation.metrics["fad"], statistics=str(whole_out / "statistics" / "fad.npz"))
    cache, point = FeatureCache(whole_out / "heard"), whole.points[0]
    features = [cache.features(metric.extractor, row.path) for row in whole.rows if row.point == point]
    assert metric.distance(features, [])["fad"] == pytest.approx(whole.sets[point]["fad"]["fad"], rel=1e-9)


def _as_long(path: Path, samples: torch.Tensor) -> bool:
    return read_audio(path).samples.shape == samples.shape


def _prompts(results: Results) -> list[EvaluationPrompt]:
    return [row.prompt for row in results.rows if row.point == results.points[0]]
