"""Prompts that upstream's other doors write, from their own records: its direct helper and its trainer.

They share the blocks of ``prompt`` and differ in what is looked up and how numbers print. Here for parity and for
reading prompts that those doors made; songs of ours go through ``prompt.render`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acestep.conditioning.prompt import TEXT2MUSIC, UNKNOWN, Prompt, caption_prompt, lyric_prompt, metadata_block
from acestep.data.captions import TagPosition


def prompt_from_metadata(
    caption: str,
    lyrics: str,
    metadata: Mapping[str, Any] | str | None,
    language: str = "en",
    instruction: str | None = None,
) -> Prompt:
    """Upstream ``build_dit_inputs``: a caption or language inside ``metadata`` wins over the arguments."""
    known = metadata if isinstance(metadata, Mapping) else {}
    return Prompt(
        caption_prompt(known.get("caption") or caption, metadata_block(metadata), instruction or TEXT2MUSIC),
        lyric_prompt(lyrics, known.get("language") or language),
    )


def training_prompt(
    record: Mapping[str, Any], use_genre: bool = False, tag_position: TagPosition | str = TagPosition.prepend
) -> str:
    """Upstream ``build_simple_prompt`` of its trainer: seconds print as they are, and a missing duration as 0.

    Args:
        record: ``caption``, ``genre``, ``custom_tag``, ``bpm``, ``keyscale``, ``timesignature``, ``duration``;
            ``prompt_override`` (``genre`` or ``caption``) beats ``use_genre``.
        use_genre: caption by genre, where the record has one.
        tag_position: where ``custom_tag`` goes.
    """
    by_genre = record["prompt_override"] == "genre" if record.get("prompt_override") else use_genre
    caption = (by_genre and record.get("genre")) or record.get("caption", "")
    metadata = {name: record.get(name) or UNKNOWN for name in ("bpm", "timesignature", "keyscale")}
    metadata["duration"] = f"{record.get('duration', 0)} seconds"
    return caption_prompt(
        TagPosition(tag_position).put(record.get("custom_tag") or "", caption), metadata_block(metadata)
    )
