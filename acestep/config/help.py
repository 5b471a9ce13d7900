"""What ``--help`` says: a main's own words, the groups that it has, and every key with its value.

Hydra's own page reads all groups of all mains again and again, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from acestep.config.meanings import explained

HELP = {"--help", "-h"}
SHARED = ("sweep", "experiment")
"""Groups from which two mains draw."""


def help_text(configs: Path, name: str, overrides: Sequence[str]) -> str:
    """The page for the main of config ``name``, as ``overrides`` make it."""
    with initialize_config_dir(str(configs), version_base="1.3"):
        cfg = compose(name, list(overrides), return_hydra_config=True)
    page = cfg.hydra.help
    with open_dict(cfg):
        del cfg["hydra"]
    groups = "\n".join(f"  {group}: {', '.join(_options(configs / group, name))}" for group in _groups(configs, name))
    config = OmegaConf.to_container(cfg, enum_to_str=True)
    return (
        f"{page.header}\n\nGroups (group=option):\n\n{groups}\n\nKeys and their values in this command (key=value):\n\n"
        f"{explained(config, configs / f'{name}.yaml')}\n{page.footer}"
    )


def _groups(configs: Path, name: str) -> list[str]:
    """The groups that the main's config draws from, Hydra's own aside."""
    entries = OmegaConf.load(configs / f"{name}.yaml").defaults
    named = [str(key).split()[-1] for entry in entries if OmegaConf.is_dict(entry) for key in entry]
    return sorted(group for group in named if group != "hydra")


def _options(group: Path, main: str) -> list[str]:
    """The group's options; where mains share a group, an option's first comment says that it is evaluate.py's."""
    found = sorted(group.glob("*.yaml"))
    if group.name in SHARED:
        found = [path for path in found if is_for(path, main)]
    return [path.stem for path in found]


def is_for(path: Path, main: str) -> bool:
    """Whether an option of a shared group is meant for ``main``."""
    comment = path.read_text("utf-8").removeprefix("# @package _global_\n").partition("\n")[0]
    return comment.startswith("# evaluate.py") == (main == "evaluate")
