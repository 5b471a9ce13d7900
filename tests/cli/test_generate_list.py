"""``infer.py`` for lists of songs: invalid entries, resuming, file formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from acestep.songs.lists import check_name, parse_request, read_songs

Run = Callable[..., tuple[int | str, list[str]]]


def _write(path: Path, songs: list[Any]) -> Path:
    path.write_text("\n".join(song if isinstance(song, str) else json.dumps(song) for song in songs), encoding="utf-8")
    return path


def _invalid_songs(folder: Path) -> list[tuple[Any, str]]:
    """Invalid songs, each with the field that the error must name."""
    soundfile.write(folder / "empty.wav", np.zeros((0, 2)), 48_000)
    soundfile.write(folder / "short.wav", np.zeros((100, 2)), 48_000)
    soundfile.write(folder / "nan.wav", np.full((48_000, 1), np.nan, np.float32), 48_000, subtype="FLOAT")
    soundfile.write(folder / "fine.wav", 0.1 * np.ones((48_000, 1)), 48_000, subtype="PCM_U8")
    soundfile.write(folder / "fast.flac", 0.1 * np.ones((192_000, 2)), 192_000, subtype="PCM_24")
    (folder / "text.wav").write_text("no audio")
    whole = (folder / "fine.wav").read_bytes()
    (folder / "cut.flac").write_bytes(b"fLaC" + whole[:200])
    (folder / "latin.txt").write_bytes("zażółć".encode("utf-16"))
    (folder / "adapter.pt").write_bytes(b"\x80\x04")
    (folder / "adapter.safetensors").write_bytes(b"broken")
    numbers = [float("nan"), float("inf"), -float("inf"), -1, -1e300, 1e300, 10**300, "ten", "", [], {}, True, "1e5x"]
    cases = [({key: value}, key) for key in ("seconds", "bpm", "seed") for value in numbers]
    cases += [({"cover_strength": value}, "cover_strength") for value in [*numbers, 1.5]]
    cases += [({"retake": value}, "retake") for value in [*numbers, 2]]
    texts = [5, 5.5, True, [], {}, ["a"], float("nan")]
    cases += [({key: value}, key) for key in ("caption", "lyrics", "language", "key", "name") for value in texts]
    cases += [
        ({"caption": "\ud800"}, "caption"),
        ({"lyrics": "a\0b"}, "lyrics"),
        ({"caption": "x" * 10_000}, "caption"),
    ]
    cases += [({"lyrics": "la " * 100_000}, "lyrics"), ({"lyrics": "@none.txt"}, "lyrics"), ({"lyrics": "@"}, "lyrics")]
    cases += [
        ({"lyrics": "@latin.txt"}, "lyrics"),
        ({"lyrics": "@a\0b"}, "lyrics"),
        ({"lyrics": "🎵" * 3_000}, "lyrics"),
    ]
    cases += [({"language": word}, "language") for word in ("klingon", "🎵", "עברית", "e n", "x" * 500, "\u202een", "")]
    cases += [({"key": word}, "key") for word in ("H major", "C", "🎵 minor", "C major minor", "C\nmajor\n#")]
    cases += [({"time_signature": value}, "time_signature") for value in ("5", 7, "4/4/4/5"[3:], "🎵", -4, 0, "three")]
    cases += [({"seed": value}, "seed") for value in (2**63, 1.5, "x")]
    names = [
        "../up",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        ".",
        ".hidden",
        "",
        " ",
        "a\0b",
        "a\nb",
        "x" * 300,
        "con.flac",
    ]
    names += ["c:evil", "\u202egnp.exe", "a\u200bb", "..\\..\\x", "~/x/y", "nul", "/", "\t", "a/../../b.flac"]
    cases += [({"name": name}, "name") for name in names]
    sources = [
        "none.wav",
        "empty.wav",
        "short.wav",
        "nan.wav",
        "text.wav",
        "cut.flac",
        ".",
        "",
        "a\0b",
        "/dev/null",
        "x" * 5_000,
    ]
    cases += [({"task": "cover", "source": source}, "source") for source in sources]
    cases += [({"references": [source]}, "references") for source in sources]
    fine = {"task": "repaint", "source": "fine.wav"}
    spans = [
        (9, 10, "start"),
        (0.5, 0.2, "end"),
        (0, 1e9, "end"),
        (-1e9, 1, "start"),
        (float("nan"), 1, "start"),
        (0, -1, "end"),
    ]
    cases += [(fine | {"start": start, "end": end}, key) for start, end, key in spans]
    cases += [(fine, "start"), (fine | {"start": 0.1, "seconds": 3.5}, "seconds"), ({"source": "fine.wav"}, "source")]
    cases += [({"task": task}, "task") for task in ("paint", "", "COVER", 3, "🎵", "text2music ")]
    cases += [({"task": "lego", "source": "fine.wav"}, "task"), ({"task": "cover"}, "source")]
    unused = [("source_caption", "x"), ("edit_draws", 2), ("repaint_strength", 0.1), ("splice", "none")]
    cases += [({key: value}, key) for key, value in [*unused, ("cover_strength", 0.5), ("source_strength", 0.5)]]
    cases += [({"task": "edit", "source": "fine.wav", "retake": 0.5}, "retake")]
    cases += [({"tracks": ["drums"]}, "tracks"), ({"splice": "hard"}, "splice"), ({"edit_draws": 0}, "edit_draws")]
    cases += [
        ({"adapters": value}, "adapters") for value in (3, [3], [{}], [{"path": 3}], [{"path": "a", "scale": "x"}])
    ]
    cases += [({"codes": value}, "codes") for value in ("abc", ["x"], [1.5], [-1], [64_000], [1] * 9_999, {}, True)]
    cases = [(song, f"song.{key}") for song, key in cases]
    cases += [({"adapters": [name]}, "adapters") for name in ("none", "adapter.pt", "adapter.safetensors", "")]
    cases += [({"captoin": "x"}, "song.captoin"), ({"": 1}, "song."), ({"__class__": 1}, "song.__class__")]
    cases += [(line, "song") for line in ("{", "[1, 2]", "null", '"x"', "{'caption': 1}", "5", "{}}", "[" * 100_000)]
    return cases


def test_invalid_songs_are_refused_with_the_field(run: Run, tmp_path: Path) -> None:
    cases = _invalid_songs(tmp_path)
    assert len({json.dumps(song) for song, _ in cases}) == len(cases) >= 200
    good = [
        {
            "caption": "emoji 🎵 and \u202eright to left עברית",
            "lyrics": "[verse]\nשלום",
            "language": "Hebrew",
            "name": "good",
        },
        {"task": "cover", "source": "fine.wav", "name": "eight bits"},
        {"task": "cover", "source": "fast.flac", "name": "192 kHz"},
    ]
    before = set(tmp_path.rglob("*"))
    listed = _write(tmp_path / "songs.jsonl", [good[0], *(song for song, _ in cases), *good[1:]])
    status, lines = run(f"songs={listed}", "out=out", "batch_size=4")
    assert status == 3
    failed = {int(line.split()[1]): line for line in lines if line.startswith("failed")}
    assert sorted(failed) == list(range(2, len(cases) + 2))
    for number, (song, field) in enumerate(cases, 2):
        assert field in failed[number], (song, failed[number])
        assert len(failed[number]) < 400 + 300, song
        assert failed[number].isprintable(), song
    assert lines[-1].startswith(f"3 generated, 0 already there, {len(cases)} failed")
    made = {f"{song['name']}.{suffix}" for song in good for suffix in ("flac", "json")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made
    assert set(tmp_path.rglob("*")) - before == {listed, tmp_path / "out", *(tmp_path / "out").iterdir()}


def test_an_interrupted_list_resumes_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    songs = [{"caption": "One, two!", "seed": 3}, {"name": "b.wav", "seconds": 0.8}, {"name": "B", "seed": 1}]
    listed = _write(tmp_path / "songs.jsonl", songs)
    status, lines = run(f"songs={listed}", "out=out", "format=ogg", "keep_latents=true")
    assert (status, lines[-1][:43]) == (3, "2 generated, 0 already there, 1 failed, in ")
    assert "an earlier song of the list has it" in lines[-2]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"0001-one-two-3.ogg", "0001-one-two-3.latents.safetensors", "b.wav", "b.json"} <= names
    first = (tmp_path / "out" / "b.wav").read_bytes()

    (tmp_path / "out" / "b.wav").unlink()  # as if it had been stopped between the sidecar and the song
    status, lines = run(f"songs={listed}", "out=out", "format=ogg")
    assert lines[-1].startswith("1 generated, 1 already there, 1 failed")
    assert (tmp_path / "out" / "b.wav").read_bytes() == first
    status, lines = run("from=out/b.json", "out=again.wav")
    assert (status, (tmp_path / "again.wav").read_bytes()) == (0, first)

    songs[1]["seed"] = 9
    _write(listed, songs[:2])
    status, lines = run(f"songs={listed}", "out=out", "format=ogg")
    assert "exists and is another song" in lines[-2]
    assert (tmp_path / "out" / "b.wav").read_bytes() == first
    status, lines = run(f"songs={listed}", "out=out", "format=ogg", "overwrite=true")
    assert (status, lines[-1][:8]) == (0, "2 genera")
    assert (tmp_path / "out" / "b.wav").read_bytes() != first


def test_changed_source_files_are_refused(run: Run, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones((48_000, 1)), 48_000)
    assert run("song.task=cover", "song.source=a.wav", "out=b.mp3")[0] == 0
    assert run("from=b.json", "out=c.mp3")[0] == 0
    assert (tmp_path / "b.mp3").read_bytes() == (tmp_path / "c.mp3").read_bytes()
    soundfile.write(tmp_path / "a.wav", 0.2 * np.ones((48_000, 1)), 48_000)
    assert "song: a.wav changed since" in str(run("from=b.json", "out=d.mp3")[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["songs=none.jsonl"], "songs=none.jsonl: no such file"),
        (["songs=list.txt"], "songs=list.txt: cannot read .txt"),
        (["songs=empty.jsonl"], "songs=empty.jsonl: lists no song"),
        (["songs=broken.yaml"], "songs=broken.yaml: not YAML"),
        (["songs=map.yaml"], "songs=map.yaml: need a list of songs"),
        (["songs=broken.parquet"], "songs=broken.parquet: not a Parquet file"),
        (["songs=latin.csv"], "songs=latin.csv: cannot be read"),
        (["songs=one.jsonl", "out=a.flac"], "out=a.flac: songs=one.jsonl lists many songs"),
        (["songs=one.jsonl", "format=aiff"], "format=aiff: use one of flac"),
        (["songs=one.jsonl", "memory=little"], "memory=little: use auto or"),
    ],
)
def test_an_unreadable_list_is_a_one_line_error(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "one.jsonl").write_text("{}")
    (tmp_path / "broken.yaml").write_text("- [")
    (tmp_path / "map.yaml").write_text("a: b")
    (tmp_path / "broken.parquet").write_text("PAR1")
    (tmp_path / "latin.csv").write_bytes(b"caption\n\xff\xfe")
    status, lines = run(*arguments)
    assert str(status).startswith(f"error: {says}")
    assert not lines
    assert not (tmp_path / "out").exists()


def test_all_formats_give_equal_requests(tmp_path: Path) -> None:
    songs = [{"caption": "a, b", "bpm": 120, "seconds": 2.5, "references": ["x.wav", "y.wav"]}, {"lyrics": "la\nla"}]
    _write(tmp_path / "a.jsonl", songs)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(songs))
    (tmp_path / "a.csv").write_text(
        'caption,bpm,seconds,references,lyrics,adapters\n"a, b",120,2.5,x.wav;y.wav,,\n,,,,"la\nla",\n'
    )
    pq.write_table(
        pa.Table.from_pylist(
            [{key: song.get(key) for key in ("caption", "bpm", "seconds", "references", "lyrics")} for song in songs]
        ),
        tmp_path / "a.parquet",
    )
    first, *others = (
        [line.request for line in read_songs(tmp_path / f"a.{suffix}")]
        for suffix in ("jsonl", "yaml", "csv", "parquet")
    )
    assert first[0].references == (str(tmp_path / "x.wav"), str(tmp_path / "y.wav"))
    assert (first[0].bpm, first[1].lyrics) == (120, "la\nla")
    assert all(other == first for other in others)


def test_csv_cells_and_file_names() -> None:
    request = parse_request({"adapters": "a*0.5; b", "seed": "7", "key": ""}, Path("in"), is_text=True)
    assert [(use.path, use.scale) for use in request.adapters] == [("in/a", 0.5), ("in/b", 1.0)]
    assert (request.seed, request.key) == (7, None)
    for name in ("song", "Lied 7.flac", "歌", "🎵"):
        check_name(name)


def test_adapters_are_switched_per_song_or_merged_for_all(run: Run, tmp_path: Path, adapters: list[str]) -> None:
    songs = [{"name": "a"}, {"name": "b", "adapters": [{"path": adapters[1], "scale": 0.5}]}, {"name": "c"}]
    listed = _write(tmp_path / "songs.jsonl", songs)
    shared = f"adapters=[{adapters[0]}]"
    assert run(f"songs={listed}", shared, "out=own", "batch_size=3")[0] == 0
    first, other, third = ((tmp_path / "own" / f"{name}.flac").read_bytes() for name in "abc")
    assert first == third != other
    status, lines = run(f"songs={listed}", shared, "merge=true", "out=merged")
    assert (status, "adapters=" in lines[-2], "merged" in lines[-2]) == (3, True, True)
    assert lines[-1].startswith("2 generated, 0 already there, 1 failed")
    assert run("from=merged/a.json", "out=again.flac")[0] == 0
    assert (tmp_path / "again.flac").read_bytes() == (tmp_path / "merged" / "a.flac").read_bytes()
    assert run("merge=true", "out=d.flac")[0].startswith("error: merge=true: there are no adapters to merge")
