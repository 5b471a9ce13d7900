"""The benchmarks run, compare like with like, and write what they promise. How fast anything is, is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="a development dependency")

from benchmarks import loading
from benchmarks.measure import count_flops, matmul_peak
from benchmarks.sampler import main


def test_sampler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sampler.json"
    common = ["--sizes", "tiny", "--steps", "2", "--rounds", "1"]
    main([*common, "--seconds", "0.6", "1", "--batch", "2", "--json", str(file)])
    record = json.loads(file.read_text(encoding="utf-8"))
    assert [row["name"] for row in record["rows"]] == ["tiny 0.6 s x 2, 2 steps", "tiny 1 s x 2, 2 steps"]
    for row in record["rows"]:
        assert {"name", "ours_s", "peer", "peer_s", "ratio", "share_of_peak", "error"} <= row.keys()
        assert row["error"] < 1e-4
        assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"])
        assert row["share_of_peak"] > 0
    assert record["machine"]["peak_flops"] > 0
    assert "share of peak" in capsys.readouterr().out


@pytest.mark.slow
def test_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loading.json"
    loading.main([str(tmp_path / "weights"), "--model", "tiny", "--rounds", "1", "--json", str(file)])
    record = json.loads(file.read_text(encoding="utf-8"))
    read, load, *rest = record["rows"]
    assert [row["name"] for row in (read, load)] == ["read from memory", "load from memory"]
    assert [row["name"] for row in rest] == ["read from disk", "load from disk", "convert to native"]
    assert load["times_reading"] == pytest.approx(load["seconds"] / read["seconds"])
    assert all(0 <= row["memory"] < 2e9 for row in record["rows"])
    assert record["machine"]["file"] > record["machine"]["largest"] > 0
    assert "largest tensor" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["tiny_bfloat16"]


def test_flops_of_attention_are_counted() -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q = torch.randn(1, 2, 8, 4)
    assert count_flops(lambda: scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 8 * 8 * 4)
    assert matmul_peak(size=32, rounds=1) > 0
