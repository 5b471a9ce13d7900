"""Prompt strings equal upstream's, for every case of every file in ``text/``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden import root

from acestep.conditioning import prompt, upstream


def _cases(kind: str) -> list[Any]:
    path = root() / "text" / f"{kind}.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else []
    return [pytest.param(case, id=f"{kind}-{index}") for index, case in enumerate(cases)]


@pytest.mark.parametrize("case", _cases("meta_strings"))
def test_metadata_block(case: dict[str, Any]) -> None:
    assert prompt.metadata_block(case["input"]) == case["expected"]


@pytest.mark.parametrize("case", _cases("sft_caption"))
def test_plain_caption(case: dict[str, Any]) -> None:
    assert prompt.plain_caption(case["input"]) == case["expected"]


@pytest.mark.parametrize("case", _cases("instructions"))
def test_instruction(case: dict[str, Any]) -> None:
    given = case["input"]
    tracks = given.get("track_name") or given.get("complete_track_classes")
    assert prompt.task_instruction(given["task_type"], tracks) == case["expected"]


@pytest.mark.parametrize("case", _cases("dit_prompts"))
def test_prompts_of_inference(case: dict[str, Any]) -> None:
    given, expected = case["input"], case["expected"]
    metadata = prompt.song_metadata(
        given.get("bpm"), given.get("key_scale"), given.get("time_signature"), given.get("audio_duration")
    )
    assert metadata == expected["metadata"]
    block = prompt.metadata_block(metadata)
    assert block == expected["meta_string"]
    caption = prompt.plain_caption(given["caption"])
    assert prompt.caption_prompt(caption, block, given["instruction"]) == expected["text_prompt"]
    assert prompt.lyric_prompt(given["lyrics"], given["vocal_language"]) == expected["lyrics_text"]
    if "non_cover_text_prompt" in expected:
        assert prompt.caption_prompt(caption, block) == expected["non_cover_text_prompt"]


@pytest.mark.parametrize("case", _cases("build_dit_inputs"))
def test_prompts_from_metadata(case: dict[str, Any]) -> None:
    given, metadata = case["input"], case["input"]["metas"]
    known = metadata if isinstance(metadata, dict) else {}
    language = known.get("language") or given.get("vocal_language", "en")
    text = prompt.caption_prompt(
        known.get("caption") or given["caption"],
        prompt.metadata_block(metadata),
        given["instruction"] or prompt.TEXT2MUSIC,
    )
    rendered = {"text_prompt": text, "lyrics_text": prompt.lyric_prompt(given["lyrics"], language)}
    assert rendered == case["expected"]


@pytest.mark.parametrize("case", _cases("train_prompts"))
def test_prompts_of_training(case: dict[str, Any]) -> None:
    given = case["input"]
    options = {key: value for key, value in given.items() if key != "meta"}
    assert upstream.training_prompt(given["meta"], **options) == case["expected"]
