"""Every command of the README and of the guides is given as it stands there, page by page, by a reader with a folder.

What the words in capitals stand for lies in that folder under these very names: ``SONGS`` of the micro world, and for
``FOLDER`` a checkpoint of random weights with every structure of the published one. Only sizes are cut down.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from planner.tiny_language import language_model
from tiny import tiny_checkpoint, with_oobleck

from acestep.synth import write_world
from acestep.weights.checkpoint import Lengths
from acestep.weights.save import save_checkpoint

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "howto").glob("*.md"))
ELSEWHERE = {
    r"^make ": "runs this very suite, or the demonstration, which has a test of its own",
    r"hf://|--push": "asks the Hub, and tests ask no network",
    r"hydra/launcher=slurm": "needs a cluster; tests/sweeps starts the same job by submitit's local executor",
}
"""Commands that no test machine can take, and why; test_readme.py reads their arguments."""
CARDLESS = "model=tiny trainer.accelerator=cpu trainer.precision=32-true data.workers=0"
OOBLECK = {"downsampling_ratios": [2, 4, 4, 6], "channel_multiples": [1, 1, 1, 1], "sampling_rate": 4800}
"""25 latent frames a second, as published, of a tenth of the samples."""
SMALLER = (
    (r"train\.py (?!reproduce)", "trainer.max_steps=2 trainer.validate_every=2"),
    (r"train\.py (?!reproduce|.*autoencoder)", "data.held_out=2 data.batch_size=2"),
    (r"train\.py (?!.*autoencoder).*weights=FOLDER", CARDLESS),
    (r"train\.py .*experiment=xl_.*weights=FOLDER", "data.crop_frames=50"),
    (r"train\.py .*experiment=autoencoder", "trainer.accelerator=cpu data.workers=0 data.batch_size=2"),
    (r"torchrun", "trainer.devices=2"),
    (r"evaluate\.py (?!reproduce).*eval=micro", "eval.prompts.songs=2"),
    (r"evaluate\.py .*planner_micro", "eval.prompts.songs=2 eval.random_plans=4"),
    (r"planner=lm_", "planner.path=FOLDER/acestep-5Hz-lm-1.7B planner.rules.seconds=[1,2]"),
)
"""What is said beside a command, where a pattern is found in it, so that it ends in seconds and needs no card."""


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A folder with what a reader brings."""
    write_world(tmp_path / "SONGS", 12, 7)
    checkpoint = with_oobleck(tiny_checkpoint(tmp_path / "text"), **OOBLECK)
    lengths = Lengths(min_seconds=0.2, max_seconds=60.0, default_seconds=2.0)
    save_checkpoint(replace(checkpoint, lengths=lengths), tmp_path / "FOLDER")
    language_model(64_000).save(tmp_path / "FOLDER" / "acestep-5Hz-lm-1.7B")
    (tmp_path / "lyrics.txt").write_text("[verse]\nla la\n", encoding="utf-8")
    (tmp_path / "SONGS.jsonl").write_text('{"caption": "a song with bell", "seconds": 2}\n', encoding="utf-8")
    for main in ("train.py", "evaluate.py", "infer.py"):
        (tmp_path / main).symlink_to(ROOT / main)
    return tmp_path


def _commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def _cut_down(command: str) -> str:
    added = [words for pattern, words in SMALLER if re.search(pattern, command) and "--cfg" not in command]
    return " ".join([command.replace("--nproc-per-node 8", "--nproc-per-node 2").replace("2400", "12"), *added])


def _give(command: str, folder: Path) -> None:
    """Run ``command`` as a shell does where the environment of this project is active."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _give_all(pages: list[Path], folder: Path) -> None:
    for page in pages:
        for command in _commands(page):
            if not any(re.search(pattern, command) for pattern in ELSEWHERE):
                _give(_cut_down(command), folder)


@pytest.mark.long
def test_the_readme_from_its_first_command_to_its_last(reader: Path) -> None:
    _give_all([ROOT / "README.md"], reader)


@pytest.mark.long
def test_the_guides_from_their_first_command_to_their_last(reader: Path) -> None:
    _give_all(GUIDES, reader)


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_is_not_run_is_named_with_its_reason(pattern: str) -> None:
    commands = [line for page in [ROOT / "README.md", *GUIDES] for line in _commands(page) if re.search(pattern, line)]
    assert commands
    pytest.skip(f"{ELSEWHERE[pattern]}: {'; '.join(commands)}")
