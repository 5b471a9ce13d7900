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
from acestep.cli.demo_summary import DemoResults, demo_summary
from acestep.evaluation.distributed import Ranks
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.embedders.cache import HearingStore
from acestep.evaluation.embedders.mel import MelSpec
from acestep.evaluation.embedders.micro_clap import MicroClapSpec
from acestep.evaluation.metrics.core import ClapAdherence, OracleAdherence, SongFrechetDistance
from acestep.evaluation.prompts import Prompt
from acestep.evaluation.report.html import Part, chosen, write_report
from acestep.evaluation.results import Results
from acestep.evaluation.samples import ClipStore, fingerprint
from acestep.evaluation.scoring import Scoring
from acestep.evaluation.suite import Evaluation, load_scorers
from acestep.evaluation.sweep import CEILING, cells_of
from acestep.pipeline.pipeline import Pipeline
from acestep.types import Song


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def results(evaluation: Evaluation, pipeline: Pipeline, out: Path) -> Results:
    return evaluation(pipeline, pipeline.sampler, out)


def test_summary_says_all_and_is_strict_json(results: Results, out: Path):
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
    made = []
    generate = Pipeline.generate
    monkeypatch.setattr(
        Pipeline, "generate", lambda self, songs, *a, **k: made.extend(songs) or generate(self, songs, *a, **k)
    )
    assert evaluation(pipeline, pipeline.sampler, out).summary() == summary
    assert 0 < len(made) < 10
    made.clear()
    assert evaluation(pipeline, pipeline.sampler, out).summary() == summary
    assert made == []


def test_neither_batches_nor_the_order_of_prompts_change_a_score(
    results: Results, evaluation: Evaluation, pipeline: Pipeline, prompts: list[Prompt], tmp_path: Path
):
    class Reversed:
        def load(self, lengths: object) -> list[Prompt]:
            return prompts[::-1]

    other = replace(evaluation, prompts=Reversed(), batch_size=5)(pipeline, pipeline.sampler, tmp_path)
    for column in ("adherence.mean", "clap.of_mean"):
        for cell in results.cells:
            assert other.values(column, cell) == pytest.approx(results.values(column, cell), abs=1e-4)


def test_a_key_follows_weights_song_and_sampler(pipeline: Pipeline, prompts: list[Prompt], tmp_path: Path):
    def key(store: ClipStore, prompt: Prompt, scale: float) -> str:
        return store._clip(prompt, 0, cells_of(pipeline.sampler, {"guidance": {"scale": [scale]}})[0]).key

    store = ClipStore(tmp_path, pipeline, 1)
    base = key(store, prompts[0], 2.0)
    assert base == key(ClipStore(tmp_path, pipeline, 8), prompts[0], 2.0)
    assert base != key(store, prompts[0], 3.0)
    assert base != key(store, replace(prompts[0], song=replace(prompts[0].song, seed=1)), 2.0)
    before = fingerprint(pipeline)
    weight = next(pipeline.network.parameters())
    with torch.no_grad():
        weight[0] += 1.0
        assert fingerprint(pipeline) != before
        weight[0] -= 1.0


def test_songs_that_cannot_be_made_are_counted_with_their_reason(
    evaluation: Evaluation, pipeline: Pipeline, prompts: list[Prompt], tmp_path: Path
):
    bad = Prompt(id="bad", song=Song(caption="long", seconds=999.0))

    class WithBad:
        def load(self, lengths: object) -> list[Prompt]:
            return [prompts[0], bad, prompts[1]]

    results = replace(evaluation, prompts=WithBad(), ceiling=False)(pipeline, pipeline.sampler, tmp_path)
    songs = results.summary()["songs"]
    assert (songs["requested"], songs["scored"]) == (6, 4)
    assert songs["excluded"][0]["prompt"] == "bad"
    assert "song.seconds=999" in songs["excluded"][0]["reason"]
    results.write(tmp_path)
    write_report([Part(results)], tmp_path, "With a failure")


def test_one_bad_song_does_not_take_its_batch_with_it(
    pipeline: Pipeline, prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    generate = Pipeline.generate

    def refuses_second(self: Pipeline, songs: list[Song], *args: object, **options: object):
        if any(song.seed == prompts[1].song.seed for song in songs):
            raise ValueError("the sampler left the finite numbers")
        return generate(self, songs, *args, **options)

    monkeypatch.setattr(Pipeline, "generate", refuses_second)
    clips = ClipStore(tmp_path, pipeline, 3).make(prompts[:3], cells_of(pipeline.sampler, {})[0])
    assert [clip.excluded for clip in clips] == ["", "the sampler left the finite numbers", ""]


def test_a_recording_overwritten_under_its_name_is_heard_anew(metrics: Mapping[str, object], tmp_path: Path):
    scorer = metrics["clap"].load()
    store = HearingStore(tmp_path / "heard")
    path = tmp_path / "song.flac"
    noise = torch.randn(2, 48_000 * 7, generator=torch.Generator().manual_seed(0)) * 0.1
    Audio(noise, 48_000).save(path)
    first = store.hear(scorer.ear, path)["windows"]
    assert torch.equal(first, store.hear(scorer.ear, path)["windows"])
    Audio(noise.cumsum(1) * 0.01, 48_000).save(path)
    assert not torch.allclose(first, store.hear(scorer.ear, path)["windows"], atol=1e-3)


def test_real_songs_follow_their_words_and_shuffled_words_are_chance(
    metrics: Mapping[str, object], prompts: list[Prompt], pipeline: Pipeline, tmp_path: Path
):
    """The oracles hear what recordings were made to be; against other songs' truths they hear no more than chance."""
    scorers, _ = load_scorers({"adherence": metrics["adherence"]}, available_only=False)
    scoring = Scoring(scorers, HearingStore(tmp_path), [])
    clips = ClipStore(tmp_path / "clips", pipeline, 1).make(prompts, cells_of(pipeline.sampler, {})[0])
    rows = list(scoring.rows([replace(clip, path=clip.prompt.recording) for clip in clips]))
    own = [row.scores["adherence.mean"] for row in rows]
    others = [row.shuffled["adherence.mean"] for row in rows]
    assert min(a - b for a, b in zip(own, others, strict=True)) > 0.1
    assert abs(sum(others) / len(others) - 0.27) < 0.2


def test_missing_weights_stop_unless_asked_to_go_on(
    evaluation: Evaluation, pipeline: Pipeline, metrics: Mapping[str, object], tmp_path: Path
):
    gone = {"clap": ClapAdherence(embedder=MicroClapSpec(weights=str(tmp_path / "none"))), "fad": None}
    with pytest.raises(MissingWeightsError, match=r"metrics.clap: .*available_only=true"):
        load_scorers(gone, available_only=False)
    scorers, left_out = load_scorers({**gone, "adherence": metrics["adherence"]}, available_only=True)
    assert list(scorers) == ["adherence"]
    assert "no such file" in left_out["clap"]


def test_a_recording_that_cannot_be_heard_is_named_with_what_to_do(
    evaluation: Evaluation, pipeline: Pipeline, world: Path, tmp_path: Path
):
    shutil.copy(world / "000000.flac", tmp_path / "a.flac")
    Audio(torch.zeros(2, 0), 48_000).save(tmp_path / "b.wav")
    wrong = replace(evaluation, reference=str(tmp_path))
    with pytest.raises(ValueError, match=r"recording .*b\.wav: holds no sound; mend it or take it out of its folder"):
        wrong(pipeline, pipeline.sampler, tmp_path / "out")
    with pytest.raises(ValueError, match=r"eval\.songs_in_report=-1: need at least 0"):
        replace(evaluation, songs_in_report=-1)


def test_a_song_that_a_metric_cannot_hear_is_counted_and_the_others_go_on(
    metrics: Mapping[str, object], prompts: list[Prompt], pipeline: Pipeline, tmp_path: Path
):
    scorers, _ = load_scorers(metrics, available_only=False)
    scoring = Scoring(scorers, HearingStore(tmp_path / "heard"), [prompt.recording for prompt in prompts])
    clips = ClipStore(tmp_path / "clips", pipeline, 1).make(prompts, cells_of(pipeline.sampler, {})[0])
    Audio(torch.zeros(2, 44_100), 44_100).save(clips[1].path)
    rows = list(scoring.rows(clips))
    assert "48000 Hz" in rows[1].unheard["adherence"]
    assert "adherence.mean" not in rows[1].scores
    assert "clap.of_mean" in rows[1].scores
    assert all("adherence.mean" in row.scores for row in [rows[0], *rows[2:]])
    assert scoring.sets(clips, rows)["fad"]["windows"] >= 5


def test_each_song_has_its_own_distance_and_no_other_prompts_to_compare(
    prompts: list[Prompt], pipeline: Pipeline, tmp_path: Path
):
    scorers, _ = load_scorers({"fad_song": SongFrechetDistance(embedder=MelSpec())}, available_only=False)
    scoring = Scoring(scorers, HearingStore(tmp_path / "heard"), [prompt.recording for prompt in prompts])
    assert scoring.unscorable(prompts) == {}
    scoring.prepare(Ranks())
    short = replace(prompts[0], song=replace(prompts[0].song, seconds=0.8))
    clips = ClipStore(tmp_path / "clips", pipeline, 1).planned([short, *prompts[1:]], cells_of(pipeline.sampler, {})[0])
    ClipStore(tmp_path / "clips", pipeline, 1).fill(clips[:1])
    made, *own = scoring.rows([clips[0], *(replace(clip, path=clip.prompt.recording) for clip in clips[1:])])
    assert "needs at least 2" in made.unheard["fad_song"]
    assert all(row.scores["fad_song.distance"] > 0 and not row.shuffled for row in own)
    assert [row.scores["fad_song.windows"] for row in own] == [int(row.prompt.song.seconds) for row in own]
    bare = Scoring(scorers, HearingStore(tmp_path / "heard"), [])
    assert "fewer than 2 reference" in bare.unscorable(prompts)["fad_song"]


def test_metrics_that_find_nothing_to_compare_are_named(metrics: Mapping[str, object], tmp_path: Path):
    scorers, _ = load_scorers(metrics, available_only=False)
    scoring = Scoring(scorers, HearingStore(tmp_path), [])
    reasons = scoring.unscorable([Prompt(id="a", song=Song(caption="a"))])
    assert set(reasons) == {"adherence", "fad"}
    assert set(scoring.songwise) == {"clap"}


def test_two_takes_are_averaged_within_their_prompt(evaluation: Evaluation, pipeline: Pipeline, out: Path):
    twice = replace(evaluation, takes=2, sweep={}, ceiling=False)(pipeline, pipeline.sampler, out)
    assert len(twice.rows) == 10
    assert twice.interval("adherence.mean", "sampler").n == 5
    assert len({row.prompt.song.seed for row in twice.rows}) == 10


def test_report_is_one_file_that_asks_for_nothing(results: Results, out: Path):
    path = write_report([Part(results, "Sweep", {"base": results}, songs=2)], out, "A <title>")
    page = path.read_text()
    assert "A &lt;title&gt;" in page
    assert page.count("<audio") == 2 * (2 + 1 + 1)
    assert page.count("data:audio/mpeg;base64,") == page.count("<audio")
    for outside in ("src='http", 'src="http', "<link", "@import", "url(http"):
        assert outside not in page
    assert (out / "plots" / "sweep_adherence_mean.png").is_file()
    assert (out / "plots" / "sweep_adherence_factors.svg").is_file()
    assert len(chosen(results, 3)) == 3
    assert path.stat().st_size < 5_000_000


def test_the_demonstrations_summary_has_its_keys(results: Results):
    found = DemoResults(sft=results, base=results, style_sft=results, style_lora=results)
    seconds = dict.fromkeys(("synth", "sft", "lora", "sweep", "total"), 1.0)
    summary = demo_summary(found, seconds, {"first": 1.0, "last": 0.5})
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
    row = next(row for row in results.rows if row.cell == CEILING)
    recording = read_audio(row.prompt.recording)
    wanted = pipeline.decode(pipeline.encode(recording).mean)[0]
    assert torch.allclose(read_audio(row.path).samples, wanted.clamp(-1, 1), atol=1e-5)
    assert math.isfinite(row.scores["adherence.mean"])


def test_oracles_refuse_another_rate(metrics: Mapping[str, object]):
    scorer: OracleAdherence = metrics["adherence"]
    with pytest.raises(ValueError, match="48000 Hz"):
        scorer.load().ear.hear(Audio(torch.zeros(2, 100), 44_100))
    with pytest.raises(ValueError, match="at least 3840 samples, this song has 3839"):
        scorer.load().ear.hear(Audio(torch.zeros(2, 3_839), 48_000))
    short = torch.rand(2, 3_840, generator=torch.Generator().manual_seed(0)) - 0.5
    assert all(value.isfinite().all() for value in scorer.load().ear.hear(Audio(short, 48_000)).values())
