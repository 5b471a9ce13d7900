"""The language model's strings against upstream's, character for character."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden import root

from acestep.planner import prompts
from acestep.planner.answers import read_answer
from acestep.planner.codes import read_codes
from acestep.planner.prompts import Question


def _cases(kind: str) -> list[Any]:
    path = root() / "text" / f"{kind}.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else []
    return [pytest.param(case, id=f"{kind}-{index}") for index, case in enumerate(cases)]


@pytest.mark.parametrize("case", _cases("audio_code_strings"))
def test_codes(case: dict[str, Any]) -> None:
    assert read_codes(case["input"]) == case["expected"]


@pytest.mark.parametrize("case", _cases("lm_outputs"))
def test_answers(case: dict[str, Any]) -> None:
    answer, expected = read_answer(case["input"]), case["expected"]
    assert answer.metadata == expected["metadata"]
    assert answer.codes == expected["audio_codes"]
    assert answer.lyrics == expected["lyrics"]


@pytest.mark.parametrize("case", _cases("lm_prompts"))
def test_questions(case: dict[str, Any]) -> None:
    function, given = case["input"]["function"], case["input"]["kwargs"]
    if function == "_format_metadata_as_cot":
        assert prompts.write_plan(given["metadata"]) == case["expected"]
        return
    asked = question(function, given, legacy=case["input"].get("use_legacy_cfg_prompt", False))
    assert asked.messages == case["messages"]
    assert asked.text == case["expected"]


def question(function: str, given: dict[str, Any], legacy: bool) -> Question:
    """Ours for an upstream function and its arguments."""
    if function == "build_formatted_prompt_for_understanding":
        return prompts.understand(given["audio_codes"])
    if function == "build_formatted_prompt_for_inspiration":
        return prompts.inspire(given["query"], given["instrumental"])
    if function == "build_formatted_prompt_for_format":
        return prompts.polish(given["caption"], given["lyrics"])
    if not given.get("is_negative_prompt"):
        return prompts.generate(given["caption"], given["lyrics"], given.get("cot_text"))
    negative = {"negative": given["negative_prompt"]} if "negative_prompt" in given else {}
    if function == "build_formatted_prompt_with_cot":
        if legacy:
            return prompts.unplanned(given["caption"], given["lyrics"], **negative)
        return prompts.unconditional(**negative)
    if given.get("generation_phase") == "codes":
        return prompts.without_codes(given["caption"], **negative)
    return prompts.without_plan(given["lyrics"], **negative)
