"""``python -m acestep describe``: captions, metadata and lyrics of recordings, from their codes by a language model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.command import add_command

if TYPE_CHECKING:
    from acestep.pipeline import Pipeline
    from acestep.planner.plan import Planner


def describe(options: argparse.Namespace) -> int:
    """Describe recordings: caption, metadata and lyrics.

    Encode recordings to codes by a checkpoint's autoencoder and tokenizer, and describe the codes by a 5 Hz language
    model that was trained to do so.
    """
    import yaml

    from acestep.cli.plan_songs import find_language_model
    from acestep.files import write_json
    from acestep.pipeline import Pipeline
    from acestep.pipeline.build import check_device
    from acestep.planner.decoding import Decoding
    from acestep.planner.plan import PlannerConfig

    for file in options.songs:
        if not file.is_file():
            raise ValueError(f"songs={file}: no such file")
    check_device(options.device)
    pipeline = Pipeline.from_pretrained(options.weights, options.device)
    folder = find_language_model(options.planner, options.weights)
    config = PlannerConfig(path=str(folder), decoding=Decoding(temperature=options.temperature))
    planner = config.load(options.device)
    tokenizer_codes, planner_codes = pipeline.network.tokenizer.quantizer.codebook_size, planner.model.vocabulary.codes
    if planner_codes < tokenizer_codes:
        raise ValueError(
            f"planner={options.planner}: has {planner_codes} codes, and the tokenizer of weights={options.weights} "
            f"{tokenizer_codes}; name the planner of these weights"
        )
    described = {str(file): _describe_file(file, pipeline, planner, options.seed) for file in options.songs}
    for name, description in described.items():
        print(f"# {name}\n{yaml.safe_dump(description, allow_unicode=True, sort_keys=False)}", end="")
    if options.json:
        write_json(options.json, described)
    return 0


def _describe_file(file: Path, pipeline: Pipeline, planner: Planner, seed: int) -> dict[str, Any]:
    """The description under the names of ``NAME.json`` beside a song."""
    from acestep.audio import read_audio
    from acestep.planner.codes import latents_to_codes
    from acestep.planner.plan import plan_metadata

    try:
        latents = pipeline.encode(read_audio(file)).mean[0]
    except ValueError as error:
        raise ValueError(f"songs={file}: {error}; leave it out") from error
    codes = latents_to_codes(pipeline.network, [latents], pipeline.conditioner.silence)
    description = planner.describe(codes, [seed])[0]
    return {
        **plan_metadata(description.song), "genres": description.genres, "lyrics": description.song.lyrics,
    }  # fmt: skip


def add_describe(commands: Any) -> None:
    command = add_command(commands, describe)
    command.add_argument("songs", type=Path, nargs="+", help="audio files")
    command.add_argument("--weights", default="micro", help="checkpoint that encodes (default micro)")
    command.add_argument("--planner", default="micro_planner", help="the language model: a folder or a Hub id")
    command.add_argument("--seed", type=int, default=0, help="of the sampling (default 0)")
    command.add_argument("--temperature", type=float, default=0.3, help="of the sampling (default 0.3, as upstream)")
    command.add_argument("--device", default="cpu", help="device of both models (default cpu)")
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the descriptions to FILE")
