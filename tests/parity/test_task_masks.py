"""The DiT's context for each task equals that of upstream's handler, for every row of every table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import cases, load_case

from acestep.conditioning.encode import tile_silence
from acestep.conditioning.masks import repaint_span, task_context


@pytest.mark.parametrize("path", cases("task_masks"))
def test_task_masks(path: Path) -> None:
    case = load_case(path)
    silence = case.inputs["silence_latent"]
    for row in case.args["table"]:
        index, given = row["index"], row["input"]
        batch, frames = given["batch"], given["frames"]
        starts, ends = (given.get(f"repainting_{edge}", [None] * batch) for edge in ("start", "end"))
        contexts = []
        for item in range(batch):
            has_codes = bool(given.get("code_hints", [None] * batch)[item])
            has_source = item in given.get("audio_items", range(batch)) or has_codes
            latents = case.inputs[f"{index}.target_latents"][item] if has_source else None
            has_span = "repainting_start" in given
            span = repaint_span(starts[item], ends[item], frames) if has_span else None
            contexts.append(task_context(given["task_type"], latents, silence, frames, span, has_codes))
            name, *edges = row["spans"][item]
            assert (tuple(edges) if name == "repainting" else None) == span
        generate = torch.stack([context.generate for context in contexts])
        case.check(f"{index}.chunk_masks", generate)
        case.check(f"{index}.is_covers", torch.tensor([context.is_cover for context in contexts]))
        case.check(f"{index}.src_latents", torch.stack([context.source for context in contexts]))
        case.check(f"{index}.silence_tiled", tile_silence(silence, frames)[0])
        if row["repaint_mask_present"]:
            case.check(f"{index}.repaint_mask", generate)
