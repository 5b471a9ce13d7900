"""Songs that a language model plans first: filled in, shown, edited by a person, and made of the codes it wrote."""

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
from acestep.planner.hints import hints
from acestep.types import Request, Song

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


def test_what_is_left_open_is_filled_and_shown_and_the_codes_are_heard(plan: Run, run: Run, tmp_path: Path) -> None:
    status, (planned, made) = plan("song.caption=bells", "song.bpm=90", "song.language=English", "out=a.flac")
    assert status == 0
    song = _settings(tmp_path / "a.json")["song"]
    assert planned.startswith(f"planned  a.flac: 90 bpm; {song['key']}; {song['time_signature']} beats in a bar; ")
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


def test_a_plan_waits_for_a_person_and_goes_on_as_edited(plan: Run, tmp_path: Path) -> None:
    asked = ["song.lyrics='[verse]\nla\n[chorus]\noh'", "planner.edit=true", "out=a.flac"]
    status, lines = plan(*asked)
    assert (status, lines[-1]) == (0, "edit     a.plan.yaml, then give the same command again")
    assert [path.name for path in tmp_path.iterdir()] == ["a.plan.yaml"]
    file = tmp_path / "a.plan.yaml"
    assert "lyrics: |-\n  [verse]\n  la\n" in file.read_text()
    said = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(said | {"seconds": 1.2, "key": "d minor", "caption": "slow bells"}))
    assert plan(*asked, "song.seed=4")[0] == f"error: planner.edit: {file.name} is the plan of another request; " + (
        "remove it to plan anew"
    )
    assert plan(*asked)[0] == 0
    song = _settings(tmp_path / "a.json")["song"]
    assert (song["seconds"], song["key"], song["caption"], len(song["codes"])) == (1.2, "D minor", "slow bells", 6)
    assert song["bpm"] == said["bpm"]
    for wrong, says in [
        ({"bpm": 3}, "a.plan.yaml: song.bpm=3"),
        ({"tempo": 3}, "song.tempo: no such field"),
        ({"seconds": 6000}, "a.plan.yaml: song.seconds=6000: this checkpoint makes"),
        ({"codes": [1, 2]}, "a.plan.yaml: song.codes: a plan says caption, lyrics"),
    ]:
        file.write_text(yaml.safe_dump(said | wrong))
        assert says in plan(*asked, "overwrite=true")[0]
    file.write_text("caption: [")
    assert "a.plan.yaml is not YAML" in plan(*asked, "overwrite=true")[0]


def test_an_unedited_plan_gives_the_song_that_no_stop_gives(plan: Run, tmp_path: Path) -> None:
    plan("song.caption=bells", "out=a.flac")
    for _ in range(2):
        plan("song.caption=bells", "planner.edit=true", "out=b.flac")
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()


def test_a_list_is_planned_song_by_song_and_not_again(plan: Run, tmp_path: Path) -> None:
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
    assert lines[-1].startswith("4 made, 0 there before, 2 failed")
    assert _settings(tmp_path / "out" / "coded.json")["song"]["codes"] == [1, 2, 3]
    before = (tmp_path / "out" / "b.flac").read_bytes()
    (tmp_path / "out" / "b.flac").unlink()
    status, lines = plan("songs=songs.jsonl", "out=out", "batch_size=3", "planner.batch_size=1")
    assert not any(line.startswith("planned") for line in lines)
    assert lines[-1].startswith("1 made, 3 there before, 2 failed")
    assert (tmp_path / "out" / "b.flac").read_bytes() == before
    status, lines = plan("songs=songs.jsonl", "out=other", "planner.edit=true")
    assert lines[-1].startswith("2 planned, 2 made, 0 there before, 2 failed")
    assert {path.name for path in (tmp_path / "other").glob("*.yaml")} == {"a.plan.yaml", "b.plan.yaml"}


def test_codes_are_heard_and_their_strength_lets_go_of_them(tiny: Path) -> None:
    pipeline = Pipeline.from_pretrained(tiny)
    codes = tuple(range(0, 60_000, 6_000))

    def latents(song: Song) -> torch.Tensor:
        return pipeline.latents([pipeline.resolve(song)])[0]

    song = pipeline.resolve(Request(codes=codes))
    assert song.seconds == 2.0
    (item,) = pipeline._prepared([song])
    torch.testing.assert_close(item.layout.source, hints(pipeline.network, [codes])[0])
    plain = latents(Song(seconds=2.0))
    assert not torch.allclose(latents(Request(codes=codes)), plain, atol=1e-3)
    torch.testing.assert_close(latents(Request(codes=codes, cover_strength=0.0)), plain)
    assert latents(Request(codes=codes, seconds=1.0)).shape == (25, 64)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"codes": (64_000,)}, r"song\.codes: need at least one, each from 0 to 63999"),
        ({"codes": (1,) * 100}, r"song\.codes: the song would last 20 s; this checkpoint makes"),
        ({"codes": (1,), "task": "cover", "source": "a.wav"}, r"song\.codes: task cover has its source"),
    ],
)
def test_codes_that_cannot_be(tiny: Path, values: dict, says: str) -> None:
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
def test_a_planner_that_cannot_be_is_one_sentence(run: Run, arguments: list[str], says: str) -> None:
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
    """By a planner of random weights: whatever it hears, it says it in whole sentences of the grammar."""
    soundfile.write(tmp_path / "s.wav", 0.1 * torch.ones(96_000, 2).numpy(), 48_000)
    asked = ["describe", str(tmp_path / "s.wav"), "--weights", str(coded), "--planner", str(lm)]
    assert main([*asked, "--json", str(tmp_path / "said.json"), "--temperature", "1"]) == 0
    (said,) = json.loads((tmp_path / "said.json").read_text()).values()
    assert yaml.safe_load(capsys.readouterr().out) == said
    assert said["duration"] == 2
    assert {"bpm", "caption", "keyscale", "language", "timesignature", "genres", "lyrics"} < said.keys()


@pytest.mark.parametrize(
    ("planner", "says"),
    [
        ("micro_planner", "planner=micro_planner: spells 1000 codes, and the tokenizer of weights="),
        ("nowhere", "planner.path=nowhere: no language model there"),
    ],
)
def test_what_cannot_be_described_is_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], planner: str, says: str
) -> None:
    soundfile.write(tmp_path / "s.wav", 0.1 * torch.ones(48_000, 2).numpy(), 48_000)
    assert main(["describe", str(tmp_path / "s.wav"), "--weights", str(tiny), "--planner", planner]) == 1
    assert says in capsys.readouterr().err
    assert main(["describe", str(tmp_path / "no.wav")]) == 1
    assert "no.wav: no such file" in capsys.readouterr().err


def test_what_is_too_short_to_be_described_is_named(
    coded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lm: Path
) -> None:
    soundfile.write(tmp_path / "s.wav", torch.zeros(0, 2).numpy(), 48_000)
    assert main(["describe", str(tmp_path / "s.wav"), "--weights", str(coded), "--planner", str(lm)]) == 1
    assert "s.wav: too short: need at least one latent frame" in capsys.readouterr().err
    assert main(["describe", str(tmp_path / "s.wav"), "--device", "cuda:99"]) == 1
    assert "device=cuda:99: torch finds no such GPU here" in capsys.readouterr().err
