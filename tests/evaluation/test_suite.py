"""A whole small evaluation: resumable, accountable, the same however it is run, and believable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from acestep.audio.audio import Audio, read_audio
from acestep.cli.demo import DemoResults, demo_summary
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.cache import FeatureCache
from acestep.evaluation.embedders.mel import MelEmbedder
from acestep.evaluation.embedders.micro_clap import MicroClap
from acestep.evaluation.metrics import ClapAdherence, OracleAdherence, SongFrechetDistance
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.evaluation.report.html import ReportSection, select_prompts, write_evaluation_report
from acestep.evaluation.results import Results
from acestep.evaluation.samples import ClipStore, pipeline_fingerprint
from acestep.evaluation.scoring import Scoring
from acestep.evaluation.suite import Evaluation, load_metrics
from acestep.evaluation.sweep import CEILING, sweep_points
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def results(evaluation: Evaluation, pipeline: Pipeline, out: Path) -> Results:
    return evaluation(pipeline, pipeline.sampler, out)


def test_summary_is_complete_and_strict_json(results: Results, out: Path):
    results.write(out)
    summary = json.loads((out / "summary.json").read_text(), parse_constant=lambda token: pytest.fail(token))
    counts = {"requested": 15, "generated": 15, "scored": 15, "excluded": [], "unheard": []}
    assert summary["songs"] == counts
    assert [cell["settings"] for cell in summary["cells"]] == [{"guidance.scale": 1.0}, {"guidance.scale": 3.0}]
    scores = summary["cells"][0]["scores"]
    assert {"adherence.mean", "adherence.tempo", "adherence.syllables", "clap.of_mean"} <= scores.keys()
    low, high = scores["adherence.mean"]["ci95"]
    assert low <= scores["adherence.mean"]["mean"] <= high
    assert summary["ceiling"]["scores"]["adherence.mean"]["n"] == 5
    assert {"fad.fad", "fad.windows", "fad.dimensions"} <= summary["cells"][0]["sets"].keys()
    assert summary["differences"][0]["against"] == "guidance.scale=1"
    assert summary["setting"]["chance"]["adherence"]["tempo"] == pytest.approx(0.2)
    table = pq.read_table(out / "songs.parquet").to_pylist()
    assert len(table) == 15
    assert all((out / row["audio"]).is_file() for row in table)
    assert {row["song.seed"] for row in table if row["prompt"] == "000000.flac"} == {results.rows[0].prompt.song.seed}


def test_the_same_evaluation_resumed_is_identical(
    results: Results, evaluation: Evaluation, pipeline: Pipeline, out: Path, monkeypatch: pytest.MonkeyPatch
):
    summary = results.summary()
    clips = sorted((out / "clips").glob("*.flac"))
    for path in clips[::4]:
        path.unlink()
    for path in list((out / "heard").rglob("*.safetensors"))[::3]:
        path.unlink()
    generated = []
    generate = Pipeline.generate
    monkeypatch.setattr(
        Pipeline, "generate", lambda self, songs, *a, **k: generated.extend(songs) or generate(self, songs, *a, **k)
    )
    assert evaluation(pipeline, pipeline.sampler, out).summary() == summary
    assert 0 < len(generated) < 10
    generated.clear()
    assert evaluation(pipeline, pipeline.sampler, out).summary() == summary
    assert generated == []


def test_neither_batches_nor_the_order_of_prompts_change_a_score(
    results: Results, evaluation: Evaluation, pipeline: Pipeline, prompts: list[EvaluationPrompt], tmp_path: Path
):
    class Reversed:
        def load(self, lengths: object) -> list[EvaluationPrompt]:
            return prompts[::-1]

    other = replace(evaluation, prompts=Reversed(), batch_size=5)(pipeline, pipeline.sampler, tmp_path)
    for column in ("adherence.mean", "clap.of_mean"):
        for cell in results.points:
            assert other.values(column, cell) == pytest.approx(results.values(column, cell), abs=1e-4)


def test_a_key_follows_weights_song_and_sampler(pipeline: Pipeline, prompts: list[EvaluationPrompt], tmp_path: Path):
    def key(store: ClipStore, prompt: EvaluationPrompt, scale: float) -> str:
        return store._clip(prompt, 0, sweep_points(pipeline.sampler, {"guidance": {"scale": [scale]}})[0]).key

    store = ClipStore(tmp_path, pipeline, 1)
    base = key(store, prompts[0], 2.0)
    assert base == key(ClipStore(tmp_path, pipeline, 8), prompts[0], 2.0)
    assert base != key(store, prompts[0], 3.0)
    assert base != key(store, replace(prompts[0], song=replace(prompts[0].song, seed=1)), 2.0)
    before = pipeline_fingerprint(pipeline)
    weight = next(pipeline.network.parameters())
    with torch.no_grad():
        weight[0] += 1.0
        assert pipeline_fingerprint(pipeline) != before
        weight[0] -= 1.0


def test_songs_that_cannot_be_made_are_counted_with_their_reason(
    evaluation: Evaluation, pipeline: Pipeline, prompts: list[EvaluationPrompt], tmp_path: Path
):
    bad = EvaluationPrompt(id="bad", song=Song(caption="long", seconds=999.0))

    class WithBad:
        def load(self, lengths: object) -> list[EvaluationPrompt]:
            return [prompts[0], bad, prompts[1]]

    results = replace(evaluation, prompts=WithBad(), ceiling=False)(pipeline, pipeline.sampler, tmp_path)
    songs = results.summary()["songs"]
    assert (songs["requested"], songs["scored"]) == (6, 4)
    assert songs["excluded"][0]["prompt"] == "bad"
    assert "song.seconds=999" in songs["excluded"][0]["reason"]
    results.write(tmp_path)
    write_evaluation_report([ReportSection(results)], tmp_path, "With a failure")


def test_one_bad_song_does_not_take_its_batch_with_it(
    pipeline: Pipeline, prompts: list[EvaluationPrompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generate = Pipeline.generate

    def refuses_second(self: Pipeline, songs: list[Song], *args: object, **options: object):
        if any(song.seed == prompts[1].song.seed for song in songs):
            raise ValueError("the sampler left the finite numbers")
        return generate(self, songs, *args, **options)

    monkeypatch.setattr(Pipeline, "generate", refuses_second)
    clips = ClipStore(tmp_path, pipeline, 3).make(prompts[:3], sweep_points(pipeline.sampler, {})[0])
    assert [clip.excluded for clip in clips] == ["", "the sampler left the finite numbers", ""]


def test_a_recording_overwritten_under_its_name_is_extracted_again(metrics: Mapping[str, object], tmp_path: Path):
    extractor = metrics["clap"].extractor
    cache = FeatureCache(tmp_path / "heard")
    path = tmp_path / "song.flac"
    noise = torch.randn(2, 48_000 * 7, generator=torch.Generator().manual_seed(0)) * 0.1
    Audio(noise, 48_000).save(path)
    first = cache.features(extractor, path)["windows"]
    assert torch.equal(first, cache.features(extractor, path)["windows"])
    Audio(noise.cumsum(1) * 0.01, 48_000).save(path)
    assert not torch.allclose(first, cache.features(extractor, path)["windows"], atol=1e-3)


def test_recordings_score_high_and_shuffled_prompts_at_chance(
    metrics: Mapping[str, object], prompts: list[EvaluationPrompt], pipeline: Pipeline, tmp_path: Path
):
    """Oracle scores of recordings are high for their own prompts and at chance level for other songs'."""
    loaded, _ = load_metrics({"adherence": metrics["adherence"]}, available_only=False)
    scoring = Scoring(loaded, FeatureCache(tmp_path), [])
    clips = ClipStore(tmp_path / "clips", pipeline, 1).make(prompts, sweep_points(pipeline.sampler, {})[0])
    rows = list(scoring.rows([replace(clip, path=clip.prompt.recording) for clip in clips]))
    own = [row.scores["adherence.mean"] for row in rows]
    others = [row.shuffled["adherence.mean"] for row in rows]
    assert min(a - b for a, b in zip(own, others, strict=True)) > 0.1
    assert abs(sum(others) / len(others) - 0.27) < 0.2


def test_missing_weights_raise_without_available_only(
    evaluation: Evaluation, pipeline: Pipeline, metrics: Mapping[str, object], tmp_path: Path
):
    gone = {"clap": ClapAdherence(embedder=MicroClap(weights=str(tmp_path / "none"))), "fad": None}
    with pytest.raises(MissingWeightsError, match=r"metrics.clap: .*available_only=true"):
        load_metrics(gone, available_only=False)
    loaded, left_out = load_metrics({**gone, "adherence": metrics["adherence"]}, available_only=True)
    assert list(loaded) == ["adherence"]
    assert "no such file" in left_out["clap"]


def test_an_unreadable_recording_is_named_with_what_to_do(
    evaluation: Evaluation, pipeline: Pipeline, world: Path, tmp_path: Path
):
    shutil.copy(world / "000000.flac", tmp_path / "a.flac")
    Audio(torch.zeros(2, 0), 48_000).save(tmp_path / "b.wav")
    wrong = replace(evaluation, reference=str(tmp_path))
    with pytest.raises(ValueError, match=r"recording .*b\.wav: holds no sound; mend it or take it out of its folder"):
        wrong(pipeline, pipeline.sampler, tmp_path / "out")
    with pytest.raises(ValueError, match=r"eval\.songs_in_report=-1: need at least 0"):
        replace(evaluation, songs_in_report=-1)


def test_a_song_that_a_metric_cannot_score_is_counted_and_the_others_are_scored(
    metrics: Mapping[str, object], prompts: list[EvaluationPrompt], pipeline: Pipeline, tmp_path: Path
):
    loaded, _ = load_metrics(metrics, available_only=False)
    scoring = Scoring(loaded, FeatureCache(tmp_path / "heard"), [prompt.recording for prompt in prompts])
    clips = ClipStore(tmp_path / "clips", pipeline, 1).make(prompts, sweep_points(pipeline.sampler, {})[0])
    Audio(torch.zeros(2, 44_100), 44_100).save(clips[1].path)
    rows = list(scoring.rows(clips))
    assert "48000 Hz" in rows[1].unscored["adherence"]
    assert "adherence.mean" not in rows[1].scores
    assert "clap.of_mean" in rows[1].scores
    assert all("adherence.mean" in row.scores for row in [rows[0], *rows[2:]])
    assert scoring.sets(clips, rows)["fad"]["windows"] >= 5


def test_each_song_has_its_own_distance_and_no_other_prompts_to_compare(
    prompts: list[EvaluationPrompt], pipeline: Pipeline, tmp_path: Path
):
    loaded, _ = load_metrics({"fad_song": SongFrechetDistance(embedder=MelEmbedder())}, available_only=False)
    scoring = Scoring(loaded, FeatureCache(tmp_path / "heard"), [prompt.recording for prompt in prompts])
    assert scoring.remove_inapplicable(prompts) == {}
    scoring.prepare(Ranks())
    short = replace(prompts[0], song=replace(prompts[0].song, seconds=0.8))
    clips = ClipStore(tmp_path / "clips", pipeline, 1).plan(
        [short, *prompts[1:]], sweep_points(pipeline.sampler, {})[0]
    )
    ClipStore(tmp_path / "clips", pipeline, 1).generate(clips[:1])
    generated, *own = scoring.rows([clips[0], *(replace(clip, path=clip.prompt.recording) for clip in clips[1:])])
    assert "needs at least 2" in generated.unscored["fad_song"]
    assert all(row.scores["fad_song.distance"] > 0 and not row.shuffled for row in own)
    assert [row.scores["fad_song.windows"] for row in own] == [int(row.prompt.song.seconds) for row in own]
    bare = Scoring(loaded, FeatureCache(tmp_path / "heard"), [])
    assert "fewer than 2 reference" in bare.remove_inapplicable(prompts)["fad_song"]


def test_inapplicable_metrics_are_named(metrics: Mapping[str, object], tmp_path: Path):
    loaded, _ = load_metrics(metrics, available_only=False)
    scoring = Scoring(loaded, FeatureCache(tmp_path), [])
    reasons = scoring.remove_inapplicable([EvaluationPrompt(id="a", song=Song(caption="a"))])
    assert set(reasons) == {"adherence", "fad"}
    assert set(scoring.metrics) == {"clap"}


def test_two_takes_are_averaged_within_their_prompt(evaluation: Evaluation, pipeline: Pipeline, out: Path):
    twice = replace(evaluation, takes=2, sweep={}, ceiling=False)(pipeline, pipeline.sampler, out)
    assert len(twice.rows) == 10
    assert twice.interval("adherence.mean", "sampler").n == 5
    assert len({row.prompt.song.seed for row in twice.rows}) == 10


def test_report_is_one_self_contained_file(results: Results, out: Path):
    path = write_evaluation_report([ReportSection(results, "Sweep", {"base": results}, songs=2)], out, "A <title>")
    page = path.read_text()
    assert "A &lt;title&gt;" in page
    assert page.count("<audio") == 2 * (2 + 1 + 1)
    assert page.count("data:audio/mpeg;base64,") == page.count("<audio")
    for outside in ("src='http", 'src="http', "<link", "@import", "url(http"):
        assert outside not in page
    assert (out / "plots" / "sweep_adherence_mean.png").is_file()
    assert (out / "plots" / "sweep_adherence_factors.svg").is_file()
    assert len(select_prompts(results, 3)) == 3
    assert path.stat().st_size < 5_000_000


def test_the_demonstrations_summary_has_its_keys(results: Results):
    result = DemoResults(sft=results, base=results, style_sft=results, style_lora=results)
    seconds = dict.fromkeys(("synth", "sft", "lora", "sweep", "total"), 1.0)
    summary = demo_summary(result, seconds, {"first": 1.0, "last": 0.5})
    json.dumps(summary, allow_nan=False)
    adherence = summary["adherence"]
    assert {
        "chance", "ceiling", "shuffled", "best_scale", "at_best", "at_1", "difference_ci95", "base_at_best",
        "sft_gain_ci95", "factors",
    } <= adherence.keys()  # fmt: skip
    assert adherence["sft_gain_ci95"] == [0.0, 0.0]
    assert set(adherence["factors"]["tempo"]) == {"chance", "ceiling", "at_best", "ci95"}
    assert len(adherence["factors"]) == 7
    assert set(summary["sweep"][0]) == {"scale", "adherence", "adherence_ci95", "clap", "fad", "n"}
    assert {"sft", "lora", "difference_ci95"} <= summary["lora"].keys()


def test_the_ceiling_is_the_recording_through_the_autoencoder(results: Results, pipeline: Pipeline):
    row = next(row for row in results.rows if row.point == CEILING)
    recording = read_audio(row.prompt.recording)
    expected = pipeline.decode(pipeline.encode(recording).mean)[0]
    assert torch.allclose(read_audio(row.path).samples, expected.clamp(-1, 1), atol=1e-5)
    assert math.isfinite(row.scores["adherence.mean"])


def test_oracles_refuse_another_rate(metrics: Mapping[str, object]):
    oracles: OracleAdherence = metrics["adherence"]
    with pytest.raises(ValueError, match="48000 Hz"):
        oracles.extract(Audio(torch.zeros(2, 100), 44_100))
    with pytest.raises(ValueError, match="at least 3840 samples, this song has 3839"):
        oracles.extract(Audio(torch.zeros(2, 3_839), 48_000))
    short = torch.rand(2, 3_840, generator=torch.Generator().manual_seed(0)) - 0.5
    assert all(value.isfinite().all() for value in oracles.extract(Audio(short, 48_000)).values())
