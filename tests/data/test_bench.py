"""``bench data`` measures and writes its values. No speed is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from acestep.__main__ import main
from benchmarks import data


def test_bench_data(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SONG_SECONDS": 2, "STORE_SONGS": 20, "STORE_FRAMES": 60, "CROP_FRAMES": 30}.items():
        monkeypatch.setattr(data, name, value)
    file = tmp_path / "data.json"
    assert main(["bench", "data", "--weights", str(tiny), "--songs", "2", "--json", str(file)]) == 0
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["decode"]["times_real_time_a_core"] > 0
    assert values["encode"]["autoencoder"] == "SpectralAutoencoder"
    assert 0 < values["encode"]["encoder_busy"] <= 1
    assert values["load"]["crops_a_core_second"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 3
