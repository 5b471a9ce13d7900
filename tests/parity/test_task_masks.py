"""From task to context, as upstream's handler lays it out: every row of every table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden import cases, load_case

from acestep.conditioning.encode import tiled
from acestep.conditioning.masks import lay_out, span_of


@pytest.mark.parametrize("path", cases("task_masks"))
def test_task_masks(path: Path) -> None:
    case = load_case(path)
    silence = case.inputs["silence_latent"]
    for row in case.args["table"]:
        index, given = row["index"], row["input"]
        batch, frames = given["batch"], given["frames"]
        starts, ends = (given.get(f"repainting_{edge}", [None] * batch) for edge in ("start", "end"))
        layouts = []
        for item in range(batch):
            has_codes = bool(given.get("code_hints", [None] * batch)[item])
            has_source = item in given.get("audio_items", range(batch)) or has_codes
            latents = case.inputs[f"{index}.target_latents"][item] if has_source else None
            asks = "repainting_start" in given
            span = span_of(starts[item], ends[item], frames) if asks else None
            layouts.append(lay_out(given["task_type"], latents, silence, frames, span, has_codes))
            name, *edges = row["spans"][item]
            assert (tuple(edges) if name == "repainting" else None) == span
        generate = torch.stack([layout.generate for layout in layouts])
        case.check(f"{index}.chunk_masks", generate)
        case.check(f"{index}.is_covers", torch.tensor([layout.is_cover for layout in layouts]))
        case.check(f"{index}.src_latents", torch.stack([layout.source for layout in layouts]))
        case.check(f"{index}.silence_tiled", tiled(silence, frames)[0])
        if row["repaint_mask_present"]:
            case.check(f"{index}.repaint_mask", generate)
