"""``python -m acestep describe``: recordings to words, by way of their codes and the language model that reads them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from acestep.audio.audio import read_audio
from acestep.cli.plan_songs import find_language_model
from acestep.files import write_json
from acestep.pipeline.build import check_device
from acestep.pipeline.pipeline import Pipeline
from acestep.planner.decoding import Decoding
from acestep.planner.hints import audio_codes
from acestep.planner.plan import Description, Planner, PlannerConfig, metadata


def describe(options: argparse.Namespace) -> int:
    """Say what is heard in each recording."""
    for file in options.songs:
        if not file.is_file():
            raise ValueError(f"songs={file}: no such file")
    check_device(options.device)
    pipeline = Pipeline.from_pretrained(options.weights, options.device)
    place = find_language_model(options.planner, options.weights)
    config = PlannerConfig(path=str(place), decoding=Decoding(temperature=options.temperature))
    planner = config.load(options.device)
    known, spelled = pipeline.network.tokenizer.quantizer.codebook_size, planner.model.vocabulary.codes
    if spelled < known:
        raise ValueError(
            f"planner={options.planner}: spells {spelled} codes, and the tokenizer of weights={options.weights} has "
            f"{known}; name the planner of these weights"
        )
    found = {str(file): _heard(file, pipeline, planner, options.seed) for file in options.songs}
    for file, said in found.items():
        sys.stdout.write(f"# {file}\n{yaml.safe_dump(said, allow_unicode=True, sort_keys=False)}")
    if options.json:
        write_json(options.json, found)
    return 0


def _heard(file: Path, pipeline: Pipeline, planner: Planner, seed: int) -> dict[str, Any]:
    try:
        latents = pipeline.encode(read_audio(file)).mean[0]
    except ValueError as error:
        raise ValueError(f"songs={file}: {error}; take it out") from error
    codes = audio_codes(pipeline.network, [latents], pipeline.conditioner.silence)
    return _in_words(planner.describe(codes, [seed])[0])


def _in_words(heard: Description) -> dict[str, Any]:
    """By the names that ``NAME.json`` beside a song has."""
    return {**metadata(heard.song), "genres": heard.genres, "lyrics": heard.song.lyrics}
