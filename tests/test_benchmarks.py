"""The benchmarks run, compare equal results, and write their documented output; speeds are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint

pytest.importorskip("diffusers", reason="a development dependency")

from acestep.__main__ import main
from acestep.cli import bench as benches
from acestep.config.run import build, compose_config
from acestep.models.acestep import AceStep
from acestep.weights.checkpoint import Lengths
from acestep.weights.save import save_checkpoint
from benchmarks import length, loading, planner, tasks, train
from benchmarks.measure import copy_peak, matmul_peak
from benchmarks.sampler import PUBLISHED, sized
from benchmarks.work import Work

ROOT = Path(__file__).parents[1]


def written(file: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs that benchmarks wrote, and their rows."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return found["runs"], found["rows"]


def test_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sampler.json"
    common = ["--sizes", "tiny", "--steps", "2", "--rounds", "1", "--clock", "cpu"]
    assert main(["bench", "sampler", *common, "--seconds", "0.6", "1", "--batch", "2", "--json", str(file)]) == 0
    (record,), rows = written(file)
    assert [row["name"] for row in rows] == ["tiny 0.6 s x 2, 2 steps", "tiny 1 s x 2, 2 steps"]
    for row in rows:
        assert {"name", "ours_s", "peer", "peer_s", "ratio", "share_of_peak", "error"} <= row.keys()
        assert row["error"] < 1e-4
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
        assert row["share_of_peak"] > 0
        assert row["flops"] > row["bytes"] > 0
        assert row["times_products"] == pytest.approx(row["ours_s"] / row["products_s"])
    assert record["machine"]["peak_flops"] > record["machine"]["peak_bytes"] > 0
    assert "share of peak" in capsys.readouterr().out
    assert record["command"].startswith("python -m acestep bench sampler --sizes tiny --steps 2 --rounds 1 --clock cpu")
    assert record["options"]["rounds"] == 1
    assert record["options"]["compiled"] is False, "defaults are recorded too"
    assert "fastest" in record["counts"]
    assert main(["bench", "sampler", *common, "--seconds", "0.4", "--json", str(file), "--append"]) == 0
    (first, _), rows = written(file)
    assert first == record
    assert [(row["run"], row["name"]) for row in rows] == [
        (0, "tiny 0.6 s x 2, 2 steps"),
        (0, "tiny 1 s x 2, 2 steps"),
        (1, "tiny 0.4 s x 1, 2 steps"),
    ]


def test_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.json"
    given = ["--sizes", "tiny", "--seconds", "0.6", "--batch", "2", "--steps", "3", "--rounds", "1"]
    assert main(["bench", "pipeline", *given, "--json", str(file)]) == 0
    _, rows = written(file)
    assert [row["name"] for row in rows] == [f"tiny 0.6 s x 2, 3 steps, to {end}" for end in ("latents", "audio")]
    for row in rows:
        assert row["peer"] == "diffusers AceStepPipeline"
        assert row["error"] < 1e-4
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
    assert rows[0]["flops"] < rows[1]["flops"]


def test_sizes_of_the_sampler_are_the_published_ones() -> None:
    with torch.device("meta"):
        decoders = {size: AceStep(sized(size)).decoder for size in PUBLISHED}
        small = AceStep(build(compose_config("train", ["model=sft_2b", "weights=W", "data.path=D"]).model)).decoder
    counts = {size: sum(p.numel() for p in decoder.parameters()) for size, decoder in decoders.items()}
    assert counts == {"2b": sum(p.numel() for p in small.parameters()), "xl": 4_168_897_088}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sampler", "--device", "cuda"]) != 0
    assert "device=cuda: torch finds no GPU here" in capsys.readouterr().err


def test_autoencoder(tmp_path: Path) -> None:
    file = tmp_path / "autoencoder.json"
    given = ["--sizes", "tiny", "--seconds", "30", "--rounds", "1"]
    assert main(["bench", "autoencoder", *given, "--json", str(file)]) == 0
    _, rows = written(file)
    whole = "diffusers AutoencoderOobleck"
    named = [(row["name"], row["peer"]) for row in rows]
    assert named == list(product(("tiny 30 s, encode", "tiny 30 s, decode"), (whole, f"{whole}, in tiles")))
    assert all(row["error"] < 1e-5 and row["flops"] > 0 for row in rows)


@pytest.mark.parametrize("seconds", [0.56, 0.63])
def test_durations_between_frames_are_rounded_alike(seconds: float, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.json"
    given = ["--sizes", "tiny", "--seconds", str(seconds), "--until", "latents", "--steps", "1", "--rounds", "1"]
    assert main(["bench", "pipeline", *given, "--json", str(file)]) == 0
    _, (row,) = written(file)
    assert row["error"] < 1e-4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["sampler", "--batch", "1", "0"], "batch=0: need at least 1; or leave --batch out"),
        (["sampler", "--rounds", "0"], "rounds=0: need at least 1; or leave --rounds out"),
        (["train", "--rounds", "-1"], "rounds=-1: need at least 1"),
        (["pipeline", "--steps", "0"], "steps=0: need at least 1"),
        (["pipeline", "--seconds", "0"], "seconds=0: need a number of at least 0.04"),
        (["length", "--seconds", "nan", "2"], "seconds=nan: need a number"),
        (["length", "--seconds", "2"], "seconds=2: need two lengths to compare"),
        (["length", "--weights", "nowhere"], "weights=nowhere"),
        (["load", "out", "--rounds", "0"], "rounds=0: need at least 1"),
        (["load", "out", "--stored", "floaty"], "dtype=floaty"),
        (["load", "out", "--model", "foo"], "model=foo: not in configs/model"),
        (["eval", "--dimensions", "0"], "dimensions=0: need at least 1"),
        (["planner", "--width", "-1"], "width=-1: need at least 0"),
        (["overhead", "--experiment", "foo"], "experiment=foo: not in configs/experiment"),
        (["gpu", "--steps", "0"], "steps=0: need at least 1"),
        (["gpu", "--append"], "append=true: needs a file to append to; add --json FILE"),
        (["eval", "--append", "--json", "{old}"], "holds no runs to append to"),
        (["eval", "--json", "."], "json=.: is a folder"),
        (["eval", "--json", "{old}/new.json"], "old.json/new.json: cannot be written"),
        (["eval", "--windows", "1"], "windows=1: need at least 2"),
    ],
)
def test_invalid_options_are_one_line_errors(
    given: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = tmp_path / "old.json"
    old.write_text('{"rows": []}', encoding="utf-8")
    assert main(["bench", *(word.format(old=old) for word in given)]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert says in error
    assert "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


@pytest.mark.slow
@pytest.mark.parametrize("name", benches.BENCHMARKS)
def test_help_explains_the_output(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", name, "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m acestep bench {name} ")
    assert "``" not in shown
    *_, options, reading = shown.split("\n\n")
    assert "--json FILE" in options
    assert ":" in reading or "linear" in reading


def test_train(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    train.main(["--sizes", "tiny", "--seconds", "2", "--batch", "2", "--rounds", "1", "--json", str(file)])
    _, rows = written(file)
    assert [row["name"] for row in rows] == ["lora tiny 2 s x 2, 1 steps", "full tiny 2 s x 2, 1 steps"]
    for row in rows:
        assert row["error"] < 1e-5
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "peer", "only"),
    [
        ("sampler", "diffusers DiT", ["--steps", "1"]),
        ("pipeline", "diffusers AceStepPipeline", ["--steps", "1", "--until", "latents"]),
        ("train", "diffusers DiT", ["--kinds", "lora"]),
    ],
)
def test_compiled_rows(kind: str, peer: str, only: list[str], tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    given = ["--sizes", "tiny", "--seconds", "1", "--rounds", "1", "--json", str(file), *only]
    # In a process without the checks of shapes that tests run under, which the compiler does not take.
    subprocess.run([sys.executable, "-m", f"benchmarks.{kind}", *given, "--compiled"], cwd=ROOT, check=True)
    _, rows = written(file)
    peers = [(row["name"].endswith(", compiled"), row["peer"]) for row in rows]
    assert peers == [(ours, theirs) for ours in (False, True) for theirs in (peer, f"{peer}, compiled")]
    assert all(row["error"] < 1e-4 for row in rows)


def test_length(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "length.json"
    length.main(["--size", "tiny", "--seconds", "1", "4", "--rounds", "1", "--weights", "none", "--json", str(file)])
    (record,), _ = written(file)
    assert [row["seconds"] for row in record["sliding"]] == [1, 4]
    assert "to the power" in capsys.readouterr().out
    made = length.make(str(tiny), 2.0, steps=1, threads=1)
    assert 0 < made.attention_s < made.cpu_s
    assert made.peak > 1e8


def test_a_missing_benchmark_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(benches.BENCHMARKS, "sampler", ("no_such", "nothing"))
    assert main(["bench", "sampler", "--json", "x"]) == 1
    assert capsys.readouterr().err.startswith("error: bench sampler: is part of the repository")


def test_planner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "planner.json"
    planner.main(["--width", "0", "--batch", "2", "--rounds", "1", "--json", str(file)])
    _, rows = written(file)
    assert [(row["name"], row["temperature"]) for row in rows] == [
        (f"micro, {phase}", temperature) for phase in ("plan", "codes") for temperature in (0.0, 0.85)
    ]
    for row in rows:
        assert row["cost"] == pytest.approx(row["ours_s"] / row["free_s"] - 1)
        assert row["tokens"] > 20
    assert "before the first plan" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.long
def test_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loading.json"
    loading.main([str(tmp_path / "weights"), "--model", "tiny", "--rounds", "1", "--json", str(file)])
    (record,), rows = written(file)
    read, load, *rest = rows
    assert [row["name"] for row in (read, load)] == ["read from memory", "load from memory"]
    assert [row["name"] for row in rest] == ["read from disk", "load from disk", "convert to native"]
    assert load["times_reading"] == pytest.approx(load["seconds"] / read["seconds"])
    assert all(0 <= row["memory"] < 2e9 for row in rows)
    assert record["machine"]["file"] > record["machine"]["largest"] > 0
    assert "largest tensor" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["tiny_bfloat16"]


def test_flops_of_attention_are_counted() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q = torch.randn(1, 2, 8, 4)
    k = q[:, :1, :5].clone().requires_grad_()
    with Work() as work:
        made = scaled_dot_product_attention(q, k, k, enable_gqa=True)
    assert work.flops == 2 * (2 * 2 * 8 * 5 * 4)
    assert work.bytes >= 4 * (2 * 2 * 8 * 4 + 5 * 4)  # queries, what they read, keys that are values
    with Work() as work:
        made.sum().backward()
    assert work.flops == 5 * (2 * 2 * 8 * 5 * 4)
    a = torch.randn(3, 5)
    with torch.inference_mode(), Work() as work:
        torch.nn.functional.linear(a, torch.randn(7, 5))
    assert (work.flops, work.bytes) == (2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))
    assert matmul_peak(size=32, rounds=1) > 0
    assert copy_peak(size=32, rounds=1) > 0


def test_tasks(tmp_path: Path) -> None:
    lengths = Lengths(min_seconds=1.0, max_seconds=10.0, default_seconds=6.0)
    checkpoint = replace(tiny_checkpoint(tmp_path / "text"), lengths=lengths)
    weights = save_checkpoint(checkpoint, tmp_path / "tiny")
    out = tmp_path / "out"
    tasks.main([str(out), "--weights", str(weights), "--songs", "2", "--strengths", "0", "1"])
    found = json.loads((out / "tasks.json").read_text(encoding="utf-8"))
    assert (out / "tasks.png").stat().st_size > 10_000
    assert min(found["ceiling"]["cover"][factor] for factor in tasks.COVERED) == 1
    for kind in ("repaint_strength", "source_strength", "cover_strength"):
        assert [row["strength"] for row in found[kind]["rows"]] == [0, 1]
    for row in found["repaint_strength"]["rows"]:
        assert row["worst outside dB"] < -60
    assert found["source_strength"]["moves"][tasks.MELODY]["n"] == 2


def test_metrics(tmp_path: Path) -> None:
    file = tmp_path / "eval.json"
    arguments = ["--windows", "60", "--dimensions", "8", "--rounds", "1", "--clock", "cpu", "--json", str(file)]
    assert main(["bench", "eval", *arguments]) == 0
    _, rows = written(file)
    assert [(row["name"][:3], row["peer"]) for row in rows] == [
        ("FAD", "torchmetrics"),
        ("FAD", "SciPy"),
        ("KID", "torchmetrics"),
    ]
    assert all(row["error"] < 1e-9 and row["share_of_peak"] > 0 for row in rows)
