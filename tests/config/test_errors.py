"""A person's mistake ends in one sentence and a non-zero exit, wherever it is found; never in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import train


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What ``train.py`` says to ``arguments`` before it gives up."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as exit_:
        train.train()
    assert exit_.value.code not in (0, None)
    said = f"{exit_.value.code}\n{capsys.readouterr().err}"
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1, said
    return said.strip().removeprefix("error: ")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path):
    """``told`` with a command that is right but for what is given."""
    base = [
        "model=tiny",
        f"weights={tiny}",
        "data.path=store",
        "trainer.accelerator=cpu",
        f"run.dir={tmp_path / 'run'}",
    ]
    return lambda *arguments: told(capsys, monkeypatch, *base, *arguments)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("optimizer.lrr=1", "optimizer.lrr: no such key; did you mean optimizer.lr? "),
        ("optimzer.lr=1", "optimzer: no such key; did you mean optimizer? "),
        ("++optimizer.typo=1", "optimizer.typo: no such key"),
        ("optimizer=adam", "optimizer=adam: no such option; did you mean adamw? "),
        ("experiment=micro_stf", "experiment=micro_stf: no such option; did you mean micro_sft? "),
        ("seed=abc", "seed=abc: need a whole number of at least 0"),
        ("optimizer.lr=fast", "optimizer.lr=fast: not a float"),
        ("optimizer.lr=-1", "optimizer.lr=-1: need > 0"),
        ("network=scrach", "network=scrach: need pretrained, scratch or passthrough"),
        ("trainer.max_steps=0", "trainer.max_steps=0: need at least 1"),
        ("trainer.devices=two", "trainer.devices=two: need how many"),
        ("seed=-1", "seed=-1: need a whole number of at least 0"),
        ("resume=maybe", "resume=maybe: need auto or never"),
        ("callbacks.watchh.every=1", "callbacks.watchh: no such key; "),
        ("optimizer=own", "optimizer=own: no such option; "),
        ("data.held_out=-1", "data.held_out=-1: need >= 0"),
        ("data.songs=-1", "data.songs=-1: need at least 1"),
        ("optimizer.weight_decay=nan", "optimizer.weight_decay=nan: need >= 0"),
        ("timesteps.sigma=nan", "timesteps.sigma=nan: need > 0"),
        ("weights=no, such=folder", "weights=no, such=folder: no such folder"),
        ("data.path=???", "data.path: not given; add data.path=..."),
        ("weights=nowhere", "weights=nowhere: no such folder"),
        ("data.path=nowhere", "store=nowhere: not a latent store"),
        ("trainable=xyz", "trainable=xyz: matches no parameter"),
        ("trainable='('", "trainable=(: not a regular expression"),
    ],
)
def test_a_mistake_is_one_sentence(say, argument: str, sentence: str) -> None:
    assert say(argument).startswith(sentence)


def test_weights_of_another_size_are_refused(say) -> None:
    said = say("model=micro")
    assert "a checkpoint of another size" in said
    assert "model." in said


def test_a_wrong_adapter_target_names_the_right_ones(say) -> None:
    assert "q_proj" in say("adapter=lora", "adapter.targets=[query]")
