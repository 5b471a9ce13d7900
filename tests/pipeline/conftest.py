"""``infer.py`` in this process, for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from acestep.adapters import LoRA, save_adapter
from acestep.pipeline.pipeline import Pipeline

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., tuple[int | str, list[str]]]


@pytest.fixture
def run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script in an empty folder, one step a song; returns its exit status and the lines that it printed."""
    spec = importlib.util.spec_from_file_location("infer", REPOSITORY / "infer.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int | str, list[str]]:
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(sys, "argv", ["infer.py", f"weights={tiny}", "schedule.steps=1", *arguments])
        status = 0
        try:
            script.infer()
        except SystemExit as stopped:
            status = stopped.code
        return status, capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="session")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two LoRAs of random weights for the tiny checkpoint."""
    paths = []
    for seed in (1, 2):
        trained = Pipeline.from_pretrained(tiny)
        generator = torch.Generator().manual_seed(seed)
        LoRA(rank=2)(trained.network.decoder, generator)
        for name, parameter in trained.network.decoder.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=generator)
        folder = tmp_path_factory.mktemp("adapters") / str(seed)
        paths.append(str(save_adapter(trained.network.decoder, folder, str(tiny))))
    return paths
