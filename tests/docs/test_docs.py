"""The documentation builds without broken links, with a page for each metric, config group and command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from omegaconf import OmegaConf

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in strict mode: a warning, such as of a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


@pytest.mark.slow
def test_everything_that_can_be_chosen_has_a_page(site: Path) -> None:
    metrics = OmegaConf.load(ROOT / "configs" / "metrics" / "available.yaml")
    pages = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")}
    assert {f"metrics/{name}" for name in metrics} <= pages
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()} - {"hydra"}
    assert {f"configuration/{name}" for name in groups} <= pages
    assert {f"howto/{path.stem}" for path in (ROOT / "docs" / "howto").glob("*.md")} <= pages
    assert "publish" in (site / "commands" / "module" / "index.html").read_text(encoding="utf-8")
    assert "Fréchet" in (site / "python" / "evaluation" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("index.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?://", text), page


@pytest.mark.slow
def test_the_experiments_cost_what_the_formula_says(site: Path) -> None:
    text = (site / "experiments_cost" / "index.html").read_text(encoding="utf-8")
    for name in ("xl_lora_style", "xl_sft_muse", "xl_dropout_ablation", "xl_repaint_ft", "xl_cfg_sweep"):
        assert name in text
