"""``bench data`` measures what it says, and writes it down. How fast anything is, is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep.__main__ import main
from acestep.data import bench


def test_bench_data(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SONG_SECONDS": 2, "STORE_SONGS": 20, "STORE_FRAMES": 60, "CROP_FRAMES": 30}.items():
        monkeypatch.setattr(bench, name, value)
    file = tmp_path / "data.json"
    assert main(["bench", "data", "--weights", str(tiny), "--songs", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["decode"]["times_real_time_a_core"] > 0
    assert found["encode"]["autoencoder"] == "SpectralAutoencoder"
    assert 0 < found["encode"]["encoder_busy"] <= 1
    assert found["load"]["crops_a_core_second"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 3
