"""A user's mistake ends in one sentence and a non-zero exit, wherever it is found; never in a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import train


def error_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The error message of ``train.py`` with ``arguments``."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as exit_:
        train.train()
    assert exit_.value.code not in (0, None)
    message = f"{exit_.value.code}\n{capsys.readouterr().err}"
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1, message
    return message.strip().removeprefix("error: ")


@pytest.fixture
def train_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path):
    """``error_of`` with a command that is valid except for what is given."""
    base = [
        "model=tiny",
        f"weights={tiny}",
        "data.path=store",
        "trainer.accelerator=cpu",
        f"run.dir={tmp_path / 'run'}",
    ]
    return lambda *arguments: error_of(capsys, monkeypatch, *base, *arguments)


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
def test_a_mistake_is_one_sentence(train_error, argument: str, sentence: str) -> None:
    assert train_error(argument).startswith(sentence)


def test_weights_of_another_size_are_refused(train_error) -> None:
    message = train_error("model=micro")
    assert "a checkpoint of another size" in message
    assert "model." in message


def test_a_wrong_adapter_target_names_the_right_ones(train_error) -> None:
    assert "q_proj" in train_error("adapter=lora", "adapter.targets=[query]")
