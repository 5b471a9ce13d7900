"""Prompts, plan blocks and output parsing of the language model equal upstream's exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from golden import root

from acestep.planner import prompts
from acestep.planner.prompts import ChatPrompt, parse_output


def _cases(kind: str) -> list[Any]:
    path = root() / "text" / f"{kind}.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else []
    return [pytest.param(case, id=f"{kind}-{index}") for index, case in enumerate(cases) if _is_supported(case)]


def _is_supported(case: dict[str, Any]) -> bool:
    """Whether a command of this package uses the prompt.

    No command expands a query ("inspiration") or rewrites a caption ("format"), and guidance is used for codes after
    a plan only, by upstream's current prompt.
    """
    if not isinstance(case["input"], dict) or not case["input"].get("function", "").startswith("build"):
        return True
    function, given = case["input"]["function"], case["input"]["kwargs"]
    if given.get("is_negative_prompt"):
        return function == "build_formatted_prompt_with_cot" and not case["input"].get("use_legacy_cfg_prompt")
    return function not in {"build_formatted_prompt_for_inspiration", "build_formatted_prompt_for_format"}


@pytest.mark.parametrize("case", _cases("lm_outputs"))
def test_outputs(case: dict[str, Any]) -> None:
    output, expected = parse_output(case["input"]), case["expected"]
    assert output.metadata == expected["metadata"]
    assert output.codes == expected["audio_codes"]
    assert output.lyrics == expected["lyrics"]


@pytest.mark.parametrize("case", _cases("lm_prompts"))
def test_prompts(case: dict[str, Any]) -> None:
    function, given = case["input"]["function"], case["input"]["kwargs"]
    if function == "_format_metadata_as_cot":
        assert prompts.write_plan(given["metadata"]) == case["expected"]
        return
    prompt = chat_prompt(function, given)
    assert prompt.messages == case["messages"]
    assert prompt.text == case["expected"]


def chat_prompt(function: str, given: dict[str, Any]) -> ChatPrompt:
    """Our prompt for an upstream function and its arguments."""
    if function == "build_formatted_prompt_for_understanding":
        return prompts.understanding_prompt(given["audio_codes"])
    if given.get("is_negative_prompt"):
        return prompts.unconditional_prompt(
            **({"negative": given["negative_prompt"]} if "negative_prompt" in given else {})
        )
    return prompts.generation_prompt(given["caption"], given["lyrics"], given.get("cot_text"))
