"""``python -m acestep verify``: family, counts and hash of a checkpoint; a one-line error for a broken one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint, with_oobleck

from acestep.__main__ import main
from acestep.verify import check_fingerprint, fingerprint_file, verify_checkpoint
from acestep.weights.save import WRITERS, save_checkpoint

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("xl_tiny", "sft2b_tiny")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(params=MODELS)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a folder in the published layout, which a test may modify."""
    folder = tmp_path / request.param
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "silence_latent.pt"):
        shutil.copyfile(GOLDEN / request.param / name, folder / name)
    return folder


def test_a_published_folder(golden: Path, capsys: Captured) -> None:
    assert main(["verify", str(golden)]) == 0
    printed = capsys.readouterr().out
    network = load_file(golden / "model.safetensors")
    decoder = sum(tensor.numel() for name, tensor in network.items() if name.startswith("decoder."))
    assert "family       none published: the " + ("XL" if golden.name == "xl_tiny" else "2B") in printed
    assert f"{'decoder':<20}{decoder:>16,}" in printed
    assert "no fingerprint to compare with" in printed


def test_a_saved_fingerprint_is_compared(golden: Path, capsys: Captured) -> None:
    assert main(["verify", str(golden), "--save"]) == 0
    assert main(["verify", str(golden)]) == 0
    assert capsys.readouterr().out.count("as expected") == 2
    assert main(["verify", str(golden), "--expect", "1,2,3"]) == 1
    assert main(["verify", str(golden), "--expect", "much"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert "these are other weights, or damaged ones" in errors[0]
    assert "expect=much: not a fingerprint" in errors[1]
    tensors = load_file(golden / "model.safetensors")
    tensors["decoder.layers.0.mlp.up_proj.weight"] *= 1.1
    save_file(tensors, golden / "model.safetensors")
    assert main(["verify", str(golden)]) == 1


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("nan", "null_condition_emb holds numbers that are not finite"),
        ("renamed", "lacks null_condition_emb [1, 1, "),
        ("shape", "null_condition_emb has shape [1, 1, 3]"),
        ("cut", "not a whole safetensors file"),
        ("config", "hidden_size: missing from the config"),
        ("pickle", "silence_latent.pt: not a plain tensor file, so it was not opened"),
    ],
)
def test_a_damaged_checkpoint_is_a_one_line_error(golden: Path, damage: str, says: str, capsys: Captured) -> None:
    path = golden / "model.safetensors"
    tensors = load_file(path)
    if damage == "nan":
        tensors["null_condition_emb"][0, 0, 1] = torch.nan
    elif damage == "renamed":
        tensors["null_condition"] = tensors.pop("null_condition_emb")
    elif damage == "shape":
        tensors["null_condition_emb"] = torch.zeros(1, 1, 3)
    save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "config":
        config = json.loads((golden / "config.json").read_text())
        del config["hidden_size"]
        (golden / "config.json").write_text(json.dumps(config))
    elif damage == "pickle":
        torch.save(_Bomb(golden / "ran"), golden / "silence_latent.pt")
    assert main(["verify", str(golden)]) == 1
    assert not (golden / "ran").exists()
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert says in error
    assert "\n" not in error


def test_the_hash_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    checkpoint = with_oobleck(tiny_checkpoint(tmp_path / "text"))
    found = [verify_checkpoint(save_checkpoint(checkpoint, tmp_path / layout, layout)) for layout in WRITERS]
    assert len({one.sha256 for one in found}) == 1
    assert len({one.fingerprint for one in found}) == 1
    assert {"autoencoder", "text_encoder", "tokenizer"} <= found[0].parameters.keys()
    half = verify_checkpoint(save_checkpoint(checkpoint, tmp_path / "half", dtype=torch.bfloat16))
    assert half.sha256 != found[0].sha256
    check_fingerprint(half.fingerprint, found[0].fingerprint, "bfloat16")


def test_the_fingerprint_file_is_beside_the_folder(tiny: Path) -> None:
    assert fingerprint_file(tiny).parent == tiny.parent
