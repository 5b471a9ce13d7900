"""The benchmark of full-size trainings: at the smallest size on a CPU, and on a GPU against its memory plan."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import gpu

SMALL = ["model=tiny", "trainer.accelerator=cpu", "data.crop_frames=20", "adapter.rank=4", "adapter.targets=[q_proj]"]


@pytest.mark.slow
def test_experiment_trains_on_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    gpu.main(["--experiments", "xl_lora", "--steps", "2", "--frames", "20", "--json", str(file), *SMALL])
    (row,) = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert (row["experiment"], row["steps"], row["device"]) == ("xl_lora", 2, "cpu")
    assert row["trained"] == 2 * 2 * 4 * (16 + 16)  # two layers, two attentions, a product of 16 x 4 and 4 x 16
    assert 0 < row["predicted"] < row["peak"]  # on a CPU, the peak is the whole process's
    assert row["songs_per_second"] > 0
    assert math.isfinite(row["loss"])
    assert "TFLOP/s" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("experiment", gpu.EXPERIMENTS)
def test_memory_plan_is_within_ten_percent(experiment: str, tmp_path: Path) -> None:
    store = gpu.random_store(tmp_path / "store", 8, 3000)
    memory = gpu.measure(experiment, store, tmp_path / "run", 20)
    assert memory.predicted == pytest.approx(memory.peak, rel=0.1)
