"""``infer.py`` for one song: audio file and sidecar, reproducibility, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch

from acestep.cli.terminal import on_step_progress, song_progress
from acestep.flow.solvers import steps_between

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., str]


@pytest.fixture
def run(
    tiny: Path, infer_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the script in this process, in an empty folder; returns what it printed, raises what it exits with."""

    def run(*arguments: str, weights: Path | None = tiny) -> str:
        chosen = [f"weights={weights}"] if weights else []
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["infer.py", *chosen, *arguments])
        infer_script.infer()
        return capsys.readouterr().out

    return run


def _refusal(run: Run, *arguments: str, **options: Path | None) -> str:
    with pytest.raises(SystemExit) as refused:
        run(*arguments, **options)
    message = str(refused.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_a_song_and_its_sidecar(run: Run, tmp_path: Path) -> None:
    caption = 'it\'s "warm", slow (soft) ${x} \\ 50%'
    printed = run(
        f"song.caption={caption}", "song.key=f# minor", "song.time_signature=3/4", "song.seed=5", "out=a.flac"
    )
    assert printed.startswith("a.flac  (0.4 s of music in ")
    samples, rate = soundfile.read(tmp_path / "a.flac")
    assert (rate, samples.shape) == (48_000, (19_200, 2))
    settings = json.loads((tmp_path / "a.json").read_text())["settings"]
    song = settings["song"]
    assert (song["caption"], song["key"], song["time_signature"], song["seed"]) == (caption, "F# minor", "3", 5)
    assert settings["guidance"] == {
        "_target_": "acestep.flow.guidance.CFG", "scale": 2.0, "t_min": 0.0, "t_max": 1.0,
    }  # fmt: skip


def test_a_sidecar_gives_the_same_bytes_and_can_be_overridden(run: Run, tmp_path: Path) -> None:
    run("song.caption=a ${b}", "song.seconds=1.16", "guidance.scale=3", "schedule.steps=1", "out=a.flac")
    run("from=a.json", "out=b.flac", weights=None)
    assert (tmp_path / "a.flac").read_bytes() == (tmp_path / "b.flac").read_bytes()
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    run("from=a.json", "out=c.flac", "song.seed=9", "guidance=apg", "guidance.scale=5", weights=None)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())["settings"] for name in "ac")
    assert second["song"] == first["song"] | {"seed": 9}
    assert second["schedule"] == first["schedule"]
    assert second["guidance"]["_target_"].endswith("APG")
    assert second["guidance"]["scale"] == 5
    assert (tmp_path / "a.flac").read_bytes() != (tmp_path / "c.flac").read_bytes()


def test_a_preset_overrides_every_sampler_part_of_a_sidecar(run: Run, tmp_path: Path) -> None:
    run("schedule.steps=1", "out=a.flac")
    run("from=a.json", "sampler=upstream", "schedule.steps=2", "clean_last=true", "out=b.flac", weights=None)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())["settings"] for name in "ab")
    assert first["correction"] == {"_target_": "acestep.flow.dcw.NoCorrection"}
    assert (second["correction"]["_target_"], second["correction"]["mode"]) == ("acestep.flow.dcw.DCW", "double")
    assert (second["guidance"]["scale"], second["schedule"]["steps"], second["clean_last"]) == (7.0, 2, True)
    assert second["song"] == first["song"]


def test_changed_weights_are_refused(run: Run, tmp_path: Path) -> None:
    run("out=a.flac")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    sidecar["settings"]["weights_sha256"] = "0" * 64
    (tmp_path / "a.json").write_text(json.dumps(sidecar))
    assert "changed since that song was generated" in _refusal(run, "from=a.json", "out=b.flac", weights=None)
    run("from=a.json", "out=b.flac")


def test_lyrics_from_a_file_and_a_name_from_the_caption(run: Run, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("[verse]\nzażółć\n", encoding="utf-8")
    run("song.lyrics=@words.txt", "song.caption=Warm, soft: piano!", "song.language=Polish", "song.seed=3")
    song = json.loads((tmp_path / "out" / "warm-soft-piano-3.json").read_text())["settings"]["song"]
    assert (song["lyrics"], song["language"]) == ("[verse]\nzażółć", "pl")
    assert (tmp_path / "out" / "warm-soft-piano-3.flac").is_file()


def test_files_are_not_overwritten_by_default(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    assert _refusal(run, "out=a.flac") == "error: out=a.flac: a.json exists; name another, or add overwrite=true"
    assert (tmp_path / "a.json").read_text() == "mine"
    run("out=a.flac", "overwrite=true")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["song.sedonds=2"], "song.sedonds: no such key; did you mean song.seconds?"),
        (["song.seconds=700"], "song.seconds=700: this checkpoint makes 0.2 to 4 s"),
        (["song.bpm=fast"], "song.bpm=fast: not an int"),
        (["song.language=germn"], "did you mean de (German)?"),
        (["song.lyrics=@none.txt"], "song.lyrics=@none.txt: no such file"),
        (["out=song.txt"], "out=song.txt: cannot write .txt; use .flac, .wav, .ogg"),
        (["guidance=afg"], "guidance=afg: no such option; did you mean"),
        (["guidance.scale=0.5"], "guidance.scale=0.5: need >= 1"),
        (["guidance=none", "guidance.scale=4"], "guidance.scale"),
        (["schedule=custom"], "schedule.timesteps: not given; add schedule.timesteps=..."),
        (["sampler=upstraem"], "sampler=upstraem: no such option; did you mean upstream?"),
        (["clean_last=perhaps"], "clean_last=perhaps: need true or false"),
        (["padding=some"], "padding=some: use upstream or masked"),
        (["normalize=loud"], "normalize=loud: use peak or lufs or none"),
        (["dtype=int3"], "dtype=int3: use one of float32"),
        (["device=abacus"], "device=abacus: not a device"),
        (["weights=nowhere"], "weights=nowhere: no such folder"),
        (["from=nothing.json"], "from=nothing.json: no such file"),
        (["from=list.json"], "from=list.json: not the .json that infer.py writes"),
        (["from=."], "from=.: not the .json that infer.py writes"),
        (["overwrite=no"], "overwrite=no: need true or false"),
        (["keep_latents=maybe"], "keep_latents=maybe: need true or false"),
        (["batch_size=two"], "batch_size=two: need a whole number of at least 1"),
        (["batch_size=1.5"], "batch_size=1.5: need a whole number of at least 1"),
        (["weights=null"], "weights=null: need text"),
        (["weights=[micro]"], "weights=['micro']: need text"),
        (["schedule.steps=x"], "schedule.steps=x: need >= 1, a whole number"),
        (["schedule.steps=1e12"], "need >= 1, a whole number of at most 10000"),
        (["clamp=norm", "clamp.threshold=nan"], "clamp.threshold=nan: need >= 0"),
        (["out=list.json/a.flac"], "list.json is a file, not a folder"),
    ],
)
def test_invalid_arguments_are_one_line_errors(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "list.json").write_text("[]")
    assert says in _refusal(run, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"song": None}, "has no settings.song"),
        ({"song": {"caption": 5}}, "song.caption=5: need text"),
        ({"song": {"adapters": [{"scale": 1.0}]}}, "song.adapters={'scale': 1.0}"),
        ({"guidance": 5}, "guidance=5: need an option"),
        ({"device": None}, "settings.device=null: need text"),
        ({"weights": 5}, "settings.weights=5: need text"),
        ({"weights_sha256": 5}, "settings.weights_sha256=5: need text"),
        ({"colour": "red"}, "settings.colour is no setting of infer.py"),
    ],
)
def test_an_invalid_sidecar_is_a_one_line_error(
    run: Run, tiny: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    settings = {"weights": str(tiny), "song": {"seconds": 1.16}, "device": "cpu", **change}
    (tmp_path / "a.json").write_text(json.dumps({"settings": settings}))
    assert says in _refusal(run, "from=a.json", "out=b.flac", weights=None)


def test_the_script_in_a_subprocess(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "infer.py"), f"weights={tiny}", "song.seconds=9", "out=a.flac"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: song.seconds=9: this checkpoint makes 0.2 to 4 s")


def test_a_terminal_shows_the_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(songs: int) -> str:
        with song_progress(songs, before=songs - 1) as moved:
            on_step_progress(moved, songs - 1, 1)(steps_between(torch.tensor([1.0, 0.5, 0.0]))[1])
        return capsys.readouterr().err

    assert not shown(1)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "50%" in shown(1)
    assert "88%" in shown(4)
