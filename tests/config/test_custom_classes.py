"""Classes of a user's own file are parts of configs: typed, refused in one sentence, kept with the run."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path

import pytest
from commands import SMALL, call, small_store

from acestep.files import file_hash

pytestmark = pytest.mark.slow

CODE = '''
from dataclasses import dataclass

from peft import LoraConfig

from acestep.adapters import Adapter
from acestep.data.dataset import LatentDataset
from acestep.evaluation.metrics import SongMetric
from acestep.evaluation.prompts import EvaluationPrompt
from acestep.flow.guidance import Guidance
from acestep.flow.solvers import Solver, StepResult
from acestep.songs import Song
from acestep.training.datamodule import DataConfig


@dataclass(frozen=True, kw_only=True)
class LateCFG(Guidance):
    """CFG near the data.

    Args:
        scale: guidance scale.
        stop: time at which guidance starts.
    """

    scale: float = 4.0
    stop: float = 0.5

    def active(self, t):
        return t < self.stop

    def __call__(self, predictions, state=None):
        difference = predictions.conditional - predictions.null
        return predictions.null + self.scale * difference, state


@dataclass(frozen=True, kw_only=True)
class Damped(Solver):
    factor: float = 1.0

    def times(self, step):
        return (step.t,)

    def __call__(self, x_t, velocity, step, evaluate, draw):
        return StepResult(x_t - self.factor * velocity * (step.t - step.t_next), step.t_next, velocity)


@dataclass(frozen=True, kw_only=True)
class Peak(SongMetric):
    gain: float = 1.0

    def extract(self, audio):
        return {"peak": self.gain * audio.samples.abs().max()[None]}


@dataclass(frozen=True, kw_only=True)
class Captions:
    captions: tuple[str, ...]

    def load(self, lengths):
        songs = [Song(caption=text, seconds=lengths.min_seconds, seed=1) for text in self.captions]
        return [EvaluationPrompt(id=str(number), song=song) for number, song in enumerate(songs)]


@dataclass(frozen=True, kw_only=True)
class QueryLoRA(Adapter):
    targets: tuple[str, ...] = ("q_proj",)
    rank: int = 2

    def config(self, targets):
        return LoraConfig(r=self.rank, target_modules=list(targets))


@dataclass(frozen=True, kw_only=True)
class HalfOfTheSongs(DataConfig):
    def load(self, seed):
        training, validation = super().load(seed)
        rows = training.rows[: len(training) // 2]
        return LatentDataset(training.store, seed=seed, rows=rows, config=self), validation


class NotADataclass:
    def __init__(self, scale=1.0):
        self.scale = scale
'''
NUMBER = count()
SONG = ("song.caption=a song", "song.seconds=2")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory; its name differs between tests, since a module is imported once."""
    name = f"user_classes_{next(NUMBER)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("custom"), tiny)


def test_infer_uses_a_guidance_rule_and_a_solver(module: str, tiny: Path, tmp_path: Path) -> None:
    words = [f"weights={tiny}", *SONG, f"guidance._target_={module}.LateCFG", "guidance.scale=3"]
    assert call("infer", *words, f"solver._target_={module}.Damped", "out=a.flac") == 0
    settings = json.loads(Path("a.json").read_text())["settings"]
    assert settings["guidance"] == {"_target_": f"{module}.LateCFG", "scale": 3.0, "stop": 0.5}
    code = settings["code"][f"{module}.LateCFG"]
    assert code == {"path": str(tmp_path / f"{module}.py"), "sha256": file_hash(Path(f"{module}.py"))}
    assert call("infer", *words, "out=plain.flac") == 0
    assert call("infer", "from=a.json", "out=again.flac") == 0
    assert Path("a.flac").read_bytes() == Path("again.flac").read_bytes()


def test_a_sidecar_runs_no_code_but_that_of_the_recorded_file(
    module: str, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("infer", f"weights={tiny}", *SONG, f"guidance._target_={module}.LateCFG", "out=a.flac") == 0
    record = json.loads(Path("a.json").read_text())
    record["settings"]["solver"] = {"_target_": "subprocess.Popen", "args": "false"}
    Path("other.json").write_text(json.dumps(record))
    assert call("infer", "from=other.json", "out=b.flac") == 1
    assert "_target_=subprocess.Popen: need a class of this package, or of a file of your own" in capfd.readouterr().err
    Path(f"{module}.py").write_text(f"{CODE}\n# changed\n")
    assert call("infer", "from=a.json", "out=b.flac") == 1
    assert "is not the file that the song was made with" in capfd.readouterr().err
    assert call("infer", "from=a.json", f"guidance._target_={module}.LateCFG", "out=b.flac") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["guidance._target_={}.LateCFG", "guidance.scal=3"],
            "guidance.scal: no such key; did you mean guidance.scale?",
        ),
        (["guidance._target_={}.LateCFG", "guidance.scale=much"], "guidance.scale=much: not a float"),
        (["guidance._target_={}.Missing"], "guidance._target_={}.Missing: "),
        (["guidance._target_=no_such_module.Rule"], "guidance._target_=no_such_module.Rule: there is no module"),
        (["guidance._target_={}.NotADataclass"], "_target_={}.NotADataclass: need a dataclass"),
        (["guidance={}.Peak"], "guidance._target_={}.Peak: need a dataclass with __call__"),
    ],
)
def test_a_mistake_is_one_sentence(
    module: str, tiny: Path, words: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("infer", f"weights={tiny}", *SONG, *(word.format(module) for word in words), "out=a.flac") == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {sentence.format(module)}")


def test_a_config_folder_names_classes(module: str, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path("mine/guidance")
    folder.mkdir(parents=True)
    (folder / "late.yaml").write_text(f"_target_: {module}.LateCFG\nscale: 2\n")
    words = [f"weights={tiny}", *SONG, "--config-dir", "mine", "guidance=late"]
    assert call("infer", *words, "guidance.stop=0.25", "out=a.flac") == 0
    guidance = json.loads(Path("a.json").read_text())["settings"]["guidance"]
    assert guidance == {"_target_": f"{module}.LateCFG", "scale": 2.0, "stop": 0.25}
    assert call("infer", *words, "guidance.stop=early", "out=b.flac") == 1
    assert "guidance.stop=early: not a float" in capfd.readouterr().err
    assert call("infer", *words, "--help") == 0
    page = capfd.readouterr().out
    assert "  # time at which guidance starts.\n  stop: 0.5\n" in page


def test_evaluate_uses_a_metric_prompts_and_a_guidance_rule(
    module: str, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path("mine/eval")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        f"""
defaults: [evaluation_schema, _self_]
prompts: {{_target_: {module}.Captions, captions: [a song, another song]}}
metrics: {{peak: {{_target_: {module}.Peak}}}}
sweep: ${{sweep}}
"""
    )
    words = [f"weights={tiny}", "--config-dir", "mine", "eval=mine", f"guidance={module}.LateCFG", "out=eval"]
    assert call("evaluate", *words, "+eval.metrics.peak.gain=loud") == 1
    assert "eval.metrics.peak.gain=loud: not a float" in capfd.readouterr().err
    assert call("evaluate", *words, "sweep.guidance.scale=[1,2]") == 0
    summary = json.loads(Path("eval/summary.json").read_text())
    assert len(summary["cells"]) == 2
    assert "peak" in json.dumps(summary)
    assert Path(f"eval/code/{module}.py").read_text() == CODE
    assert f"{module}.Captions" in json.loads(Path("eval/run.json").read_text())["custom_code"]
    Path(f"{module}.py").write_text(f"{CODE}\n# changed\n")
    assert call("evaluate", *words) == 1
    assert "holds results of another" in capfd.readouterr().err


def test_a_metric_is_added_on_the_command_line(module: str, tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["weights=micro", "eval.prompts.songs=1", "schedule.steps=2", "out=eval"]
    words += [f"metrics.{name}=null" for name in ("clap", "fad", "kad", "coverage", "diversity", "adherence")]
    assert call("evaluate", *words, f"metrics.mine._target_={module}.Peak", "metrics.mine.gian=2") == 1
    assert "metrics.mine.gian: no such key" in capfd.readouterr().err
    assert call("evaluate", *words, f"metrics.mine._target_={module}.Peak", "metrics.mine.gain=2") == 0
    assert "mine.peak" in capfd.readouterr().out


def test_train_uses_an_adapter_and_a_data_source(
    module: str, tiny: Path, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, f"weights={tiny}", "run.dir=run", f"data._target_={module}.HalfOfTheSongs", f"data.path={store}"]
    adapter = [f"adapter._target_={module}.QueryLoRA"]
    assert call("train", *words, *adapter, "adapter.rnak=4") == 1
    assert "adapter.rnak: no such key; did you mean adapter.rank?" in capfd.readouterr().err
    assert call("train", *words, *adapter, "adapter.rank=4") == 0
    config = json.loads(Path("run/weights/adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (4, ["q_proj"])
    record = json.loads(Path("run/run.json").read_text())
    assert (record["data"]["songs"], record["data"]["held_out"]) == (2, 2)
    assert record["custom_code"].keys() == {f"{module}.QueryLoRA", f"{module}.HalfOfTheSongs"}
    assert Path(f"run/code/{module}.py").read_text() == CODE
    assert call("infer", "weights=run", *SONG, "out=a.flac") == 0
