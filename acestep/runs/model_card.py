"""The model card that the Hub shows: what it is, how to use it, how good it is, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from acestep.evaluation.results import Results


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says.

    Attributes:
        name: of the model.
        licence: the Hub's name of it.
        base: what it was trained from.
        is_adapter: whether it is an adapter on ``base``.
        record: of the run.
        data: what it was trained on, by heading.
        losses: validation losses.
        results: of an evaluation.
        songs: captions by file name.
    """

    name: str
    licence: str
    base: str
    is_adapter: bool
    record: Mapping[str, Any]
    data: Mapping[str, str]
    losses: Mapping[str, float]
    results: Results | None
    songs: Mapping[str, str]


def model_card(card: Card) -> str:
    """The card as Markdown with the Hub's front matter."""
    front = {
        "license": card.licence,
        "library_name": "acestep",
        "pipeline_tag": "text-to-audio",
        "tags": ["music", "ace-step", "text-to-music", *(["lora"] if card.is_adapter else [])],
        **({"base_model": card.base} if "/" in card.base else {}),
    }
    kind = "An adapter on" if card.is_adapter else "A fine-tuned form of"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {card.name}",
        f"{kind} `{card.base}` for music from text (ACE-Step v1.5), 48 kHz stereo.",
        _use(card),
        "## Songs",
        _songs(card),
        "## Metrics",
        _metrics(card),
        "## Training data",
        "\n".join(f"- {what}: {said}" for what, said in card.data.items()),
        "Songs whose licence is not stated may not be free to train on; who publishes these weights answers for that.",
        "## Training",
        _training(card),
        "## Licence",
        f"{card.licence}; see `LICENSE`. The licence of `{card.base}` applies as well.",
    ]
    return "\n\n".join(parts) + "\n"


def _use(card: Card) -> str:
    asked = 'weights=FOLDER_OR_HUB_ID song.caption="..." song.seconds=30 out=song.flac'
    return f"```bash\npython infer.py {asked}\n```"


def _songs(card: Card) -> str:
    lines = [f'- <audio controls src="songs/{file}"></audio> {words}'.rstrip() for file, words in card.songs.items()]
    return "\n".join(lines) or "None were made."


def _metrics(card: Card) -> str:
    """Every headline with its interval at its best setting, or the validation loss."""
    results = card.results
    if results is None:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in card.losses.items())
        return f"Not evaluated on songs. Validation loss: {losses or 'none was kept'}."
    lines = ["| metric | mean | 95 % interval | prompts | setting |", "|---|---|---|---|---|"]
    for column in results.headlines:
        best = results.best(column)
        found = results.interval(column, best)
        if found:
            lines.append(f"| {column} | {found.mean:.3f} | {found.low:.3f} to {found.high:.3f} | {found.n} | {best} |")
    for cell, metrics in results.sets.items():
        for metric, values in metrics.items():
            name, value = next(iter(values.items()))
            lines.append(f"| {metric}.{name} | {value:.4g} | | | {cell} |")
    return "\n".join(lines)


def _training(card: Card) -> str:
    config, git = card.record["config"], card.record["git"]
    lines = {
        "run": card.record["identity"],
        "steps": (config.get("trainer") or {}).get("max_steps"),
        "seed": card.record["seed"],
        "optimizer": str((config.get("optimizer") or {}).get("_target_", "")).rpartition(".")[2],
        "code": f"{git['commit']}{' with changes that no commit holds' if git['dirty'] else ''}",
        "torch": card.record["packages"].get("torch"),
    }
    told = "\n".join(f"- {name}: {value}" for name, value in lines.items())
    return f"{told}\n\nEvery setting stands in `training_config.yaml`."
