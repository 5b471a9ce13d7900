"""Optional predictors: errors name the source of missing weights; predictions keep their names."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from acestep.audio.audio import Audio
from acestep.evaluation.embedders.base import MissingWeightsError
from acestep.evaluation.metrics.aesthetics import SONGEVAL_AXES, AudioboxAesthetics, SongEval
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.songs import Song

AUDIO = Audio(torch.zeros(2, 48_000), 48_000)
HEAD = """
import torch
class Generator(torch.nn.Module):
    def __init__(self, width, axes):
        super().__init__()
        self.out = torch.nn.Linear(width, axes)
    def forward(self, hidden):
        return 3 + 2 * torch.tanh(self.out(hidden.mean(1)))
"""


@pytest.mark.parametrize(
    ("metric", "source"),
    [
        (AudioboxAesthetics(), "huggingface.co/facebook/audiobox-aesthetics"),
        (SongEval(), "github.com/ASLP-lab/SongEval"),
    ],
)
def test_missing_weights_say_where_they_come_from(metric: AudioboxAesthetics | SongEval, source: str):
    with pytest.raises(MissingWeightsError, match=source):
        metric.load()


class Predictor:
    """The part of the library's predictor that is used here: rows are mappings or JSON, depending on the version."""

    def __init__(self, as_json: bool) -> None:
        self.model, self.as_json = nn.Linear(1, 1), as_json

    def forward(self, batch: list[dict[str, object]]) -> list[object]:
        assert set(batch[0]) == {"path", "sample_rate"}
        row = {"CE": 5.0, "CU": 6.0, "PC": 3.0, "PQ": 7.5}
        return [json.dumps(row) if self.as_json else row]


@pytest.mark.parametrize("as_json", [True, False])
def test_quality_comes_first_and_complexity_is_not_part_of_it(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    library = ModuleType("audiobox_aesthetics.infer")
    library.initialize_predictor = lambda ckpt: Predictor(as_json)
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics", ModuleType("audiobox_aesthetics"))
    monkeypatch.setitem(sys.modules, "audiobox_aesthetics.infer", library)
    (tmp_path / "checkpoint.pt").touch()
    metric = AudioboxAesthetics(weights=str(tmp_path / "checkpoint.pt")).load()
    assert not metric.uses_prompt
    scores = metric.score(metric.extract(AUDIO), EvaluationPrompt(id="a", song=Song()))
    assert list(scores) == ["quality", "complexity", "enjoyment", "usefulness"]
    assert scores["quality"] == 7.5


def test_songevals_head_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import save_file

    (tmp_path / "model.py").write_text(HEAD)
    (tmp_path / "config.yaml").write_text("generator: {_target_: model.Generator, width: 4, axes: 5}\n")
    (tmp_path / "ckpt").mkdir()
    weights = {"out.weight": torch.randn(5, 4), "out.bias": torch.zeros(5)}
    save_file(weights, tmp_path / "ckpt" / "model.safetensors")

    class Encoder(nn.Module):
        @classmethod
        def from_pretrained(cls, folder: str, local_files_only: bool) -> Encoder:
            return cls()

        def forward(self, samples: torch.Tensor, output_hidden_states: bool) -> dict[str, list[torch.Tensor]]:
            assert samples.shape == (1, 24_000)
            return {"hidden_states": [torch.full((1, 3, 4), float(layer)) for layer in range(8)]}

    library = ModuleType("muq")
    library.MuQ = Encoder
    monkeypatch.setitem(sys.modules, "muq", library)
    metric = SongEval(folder=str(tmp_path), encoder=str(tmp_path))
    scores = metric.load().score(metric.extract(AUDIO), EvaluationPrompt(id="a", song=Song()))
    assert next(iter(scores)) == "musicality"
    expected = 3 + 2 * torch.tanh(6.0 * weights["out.weight"].sum(1))
    assert [scores[axis] for axis in SONGEVAL_AXES] == pytest.approx(expected.tolist())
    save_file({"other": torch.zeros(1)}, tmp_path / "ckpt" / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        SongEval(folder=str(tmp_path), encoder=str(tmp_path)).load()
