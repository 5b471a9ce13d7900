"""Planning of songs by a language model: filled fields, edited plans, conditioning on the codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from planner.tiny_language import language_model

from acestep.__main__ import main
from acestep.cli.plan_songs import find_language_model
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.codes import codes_to_latents
from acestep.songs import Request, Song

Run = Callable[..., tuple[int | str, list[str]]]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in the published layout, of random weights."""
    return language_model().save(tmp_path_factory.mktemp("lm") / "acestep-5Hz-lm-tiny")


@pytest.fixture
def plan(run: Run, lm: Path) -> Run:
    short = ["planner.rules.caption_tokens=4", "planner.rules.seconds=[1,2]"]
    return lambda *arguments: run("planner=lm_0_6b", f"planner.path={lm}", *short, *arguments)


def _settings(path: Path) -> dict:
    return json.loads(path.read_text())["settings"]


def test_open_fields_are_filled_and_printed_and_codes_are_used(plan: Run, run: Run, tmp_path: Path) -> None:
    status, (planned, made) = plan("song.caption=bells", "song.bpm=90", "song.language=English", "out=a.flac")
    assert status == 0
    song = _settings(tmp_path / "a.json")["song"]
    assert planned.startswith(f"planned  a.flac: 90 bpm; {song['key']}; {song['time_signature']} beats per bar; ")
    assert planned.endswith(f"{song['seconds']:g} s; English; bells; {len(song['codes'])} codes")
    assert made.startswith("a.flac  (")
    assert (song["bpm"], song["caption"], song["language"]) == (90, "bells", "en")
    assert len(song["codes"]) == 5 * song["seconds"]
    assert soundfile.info(tmp_path / "a.flac").duration == song["seconds"]
    record = json.loads((tmp_path / "a.json").read_text())["planned"]
    assert (record["asked"]["key"], record["asked"]["codes"], record["by"]["codes"]) == (None, [], True)
    assert run("from=a.json", "out=b.flac")[0] == 0
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
    assert plan("song.caption=bells", "planner.codes=false", "out=c.flac")[1][0].startswith("planned  c.flac: ")
    assert not _settings(tmp_path / "c.json")["song"]["codes"]


def test_an_edited_plan_is_used(plan: Run, tmp_path: Path) -> None:
    words = ["song.lyrics='[verse]\nla\n[chorus]\noh'", "planner.edit=true", "out=a.flac"]
    status, lines = plan(*words)
    assert (status, lines[-1]) == (0, "edit     a.plan.yaml, then run the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["a.plan.yaml"]
    file = tmp_path / "a.plan.yaml"
    assert "lyrics: |-\n  [verse]\n  la\n" in file.read_text()
    plan_values = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(plan_values | {"seconds": 1.2, "key": "d minor", "caption": "slow bells"}))
    assert plan(*words, "song.seed=4")[0] == f"error: planner.edit: {file.name} is the plan of another request; " + (
        "remove it to plan again"
    )
    assert plan(*words)[0] == 0
    song = _settings(tmp_path / "a.json")["song"]
    assert (song["seconds"], song["key"], song["caption"], len(song["codes"])) == (1.2, "D minor", "slow bells", 6)
    assert song["bpm"] == plan_values["bpm"]
    for wrong, says in [
        ({"bpm": 3}, "a.plan.yaml: song.bpm=3"),
        ({"tempo": 3}, "song.tempo: no such field"),
        ({"seconds": 6000}, "a.plan.yaml: song.seconds=6000: this checkpoint makes"),
        ({"codes": [1, 2]}, "a.plan.yaml: song.codes: a plan has only caption, lyrics"),
    ]:
        file.write_text(yaml.safe_dump(plan_values | wrong))
        assert says in plan(*words, "overwrite=true")[0]
    file.write_text("caption: [")
    assert "a.plan.yaml is not YAML" in plan(*words, "overwrite=true")[0]


def test_an_unedited_plan_gives_the_same_song(plan: Run, tmp_path: Path) -> None:
    plan("song.caption=bells", "out=a.flac")
    for _ in range(2):
        plan("song.caption=bells", "planner.edit=true", "out=b.flac")
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()


def test_a_list_is_planned_once(plan: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", 0.1 * torch.ones(48_000, 1).numpy(), 48_000)
    songs = [
        {"caption": "one", "name": "a"},
        {"bpm": 5},
        {"lyrics": "la " * 9_000, "name": "long"},
        {"task": "cover", "source": "s.wav", "name": "cover"},
        {"codes": [1, 2, 3], "name": "coded"},
        {"caption": "two", "name": "b"},
    ]
    (tmp_path / "songs.jsonl").write_text("\n".join(map(json.dumps, songs)))
    status, lines = plan("songs=songs.jsonl", "out=out", "batch_size=3")
    assert status == 3
    assert [line.split(":")[0] for line in lines[:2]] == ["planned  a.flac", "planned  b.flac"]
    assert [line.split()[1] for line in lines if line.startswith("failed")] == ["2", "3"]
    assert "song.bpm=5" in lines[-3]
    assert "song.lyrics" in lines[-2]
    assert lines[-1].startswith("4 generated, 0 already there, 2 failed")
    assert _settings(tmp_path / "out" / "coded.json")["song"]["codes"] == [1, 2, 3]
    before = (tmp_path / "out" / "b.flac").read_bytes()
    (tmp_path / "out" / "b.flac").unlink()
    status, lines = plan("songs=songs.jsonl", "out=out", "batch_size=3", "planner.batch_size=1")
    assert not any(line.startswith("planned") for line in lines)
    assert lines[-1].startswith("1 generated, 3 already there, 2 failed")
    assert (tmp_path / "out" / "b.flac").read_bytes() == before
    status, lines = plan("songs=songs.jsonl", "out=other", "planner.edit=true")
    assert lines[-1].startswith("2 planned, 2 generated, 0 already there, 2 failed")
    assert {path.name for path in (tmp_path / "other").glob("*.yaml")} == {"a.plan.yaml", "b.plan.yaml"}


def test_codes_are_conditions_up_to_cover_strength(tiny: Path) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    codes = tuple(range(0, 60_000, 6_000))

    def latents(song: Song) -> torch.Tensor:
        return pipeline.latents([pipeline.resolve(song)])[0]

    song = pipeline.resolve(Request(codes=codes))
    assert song.seconds == 2.0
    (item,) = pipeline._prepare([song])
    torch.testing.assert_close(item.context.source, codes_to_latents(pipeline.network, [codes])[0])
    plain = latents(Song(seconds=2.0))
    assert not torch.allclose(latents(Request(codes=codes)), plain, atol=1e-3)
    torch.testing.assert_close(latents(Request(codes=codes, cover_strength=0.0)), plain)
    assert latents(Request(codes=codes, seconds=1.0)).shape == (25, 64)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"codes": (64_000,)}, r"song\.codes: need at least one, each from 0 to 63999"),
        ({"codes": (1,) * 100}, r"song\.codes: the song would last 20 s; this checkpoint makes"),
        ({"codes": (1,), "task": "cover", "source": "a.wav"}, r"song\.codes: task cover takes a source"),
    ],
)
def test_invalid_codes_are_refused(tiny: Path, values: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Pipeline.from_pretrained(tiny).resolve(Request(**values))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["planner=lm_4B"], "planner=lm_4B: no such option; did you mean lm_4b?"),
        (["planner.edit=true"], "planner.edit: no such key"),
        (
            ["planner=lm_4b", "planner.path=nowhere", "planner.rules.seconds=[1,2]"],
            "planner.path=nowhere: no language model there",
        ),
        (["planner=lm_4b", "planner.rules.bpm=[9,3]"], "planner.rules.bpm=[9, 3]: need"),
        (["planner=lm_4b", "planner.path=x", "planner.rules.seconds=[7,9]"], "planner.rules.seconds=[7, 9]: the"),
    ],
)
def test_an_invalid_planner_is_a_one_line_error(run: Run, arguments: list[str], says: str) -> None:
    status, lines = run(*arguments, "out=a.flac")
    assert says in str(status)
    assert "\n" not in str(status)
    assert not lines


def test_a_language_model_is_found_beside_the_weights(tmp_path: Path) -> None:
    for folder in ("xl", "acestep-5Hz-lm-4B", "xl/acestep-5Hz-lm-0.6B"):
        (tmp_path / folder).mkdir()
    weights = str(tmp_path / "xl")
    for repository, folder in [("acestep-5Hz-lm-4B", "."), ("acestep-5Hz-lm-0.6B", "xl")]:
        found = find_language_model(f"ACE-Step/{repository}", weights)
        assert found.resolve() == (tmp_path / folder / repository).resolve()


def test_recordings_are_described(coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lm: Path) -> None:
    """By a planner of random weights, whose output follows the grammar nevertheless."""
    soundfile.write(tmp_path / "s.wav", 0.1 * torch.ones(96_000, 2).numpy(), 48_000)
    words = ["describe", str(tmp_path / "s.wav"), "--weights", str(coded), "--planner", str(lm)]
    assert main([*words, "--json", str(tmp_path / "said.json"), "--temperature", "1"]) == 0
    (plan_values,) = json.loads((tmp_path / "said.json").read_text()).values()
    assert yaml.safe_load(capsys.readouterr().out) == plan_values
    assert plan_values["duration"] == 2
    assert {"bpm", "caption", "keyscale", "language", "timesignature", "genres", "lyrics"} < plan_values.keys()


@pytest.mark.parametrize(
    ("planner", "says"),
    [
        ("micro_planner", "planner=micro_planner: has 1000 codes, and the tokenizer of weights="),
        ("nowhere", "planner.path=nowhere: no language model there"),
    ],
)
def test_invalid_arguments_of_describe_are_one_line_errors(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], planner: str, says: str
) -> None:
    soundfile.write(tmp_path / "s.wav", 0.1 * torch.ones(48_000, 2).numpy(), 48_000)
    assert main(["describe", str(tmp_path / "s.wav"), "--weights", str(tiny), "--planner", planner]) == 1
    assert says in capsys.readouterr().err
    assert main(["describe", str(tmp_path / "no.wav")]) == 1
    assert "no.wav: no such file" in capsys.readouterr().err


def test_recordings_that_are_too_short_are_refused(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lm: Path
) -> None:
    soundfile.write(tmp_path / "s.wav", torch.zeros(0, 2).numpy(), 48_000)
    assert main(["describe", str(tmp_path / "s.wav"), "--weights", str(coded), "--planner", str(lm)]) == 1
    assert "s.wav: too short: need at least one latent frame" in capsys.readouterr().err
    assert main(["describe", str(tmp_path / "s.wav"), "--device", "cuda:99"]) == 1
    assert "device=cuda:99: torch finds no such GPU here" in capsys.readouterr().err
