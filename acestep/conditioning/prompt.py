"""Renders a song as the two prompt strings: the only place that does. No tensors here.

Source: upstream ``constants.py``, ``prompt_utils.py``, ``metadata_utils.py`` and ``task_utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acestep.songs import Song

END = "<|endoftext|>"
INSTRUMENTAL = "[Instrumental]"
UNKNOWN = "N/A"
TEXT2MUSIC = "Fill the audio semantic mask based on the given conditions:"

_COVER = "Generate audio semantic tokens based on the given conditions:"
_INSTRUCTIONS = {
    "text2music": TEXT2MUSIC,
    "repaint": "Repaint the mask area based on the given conditions:",
    "cover": _COVER,
    "cover-nofsq": _COVER,
}
_TRACK_INSTRUCTIONS = {
    "extract": ("Extract the {} track from the audio:", "Extract the track from the audio:"),
    "lego": ("Generate the {} track based on the audio context:", "Generate the track based on the audio context:"),
    "complete": ("Complete the input track with {}:", "Complete the input track:"),
}
_ALIASES = {
    "bpm": ("bpm", "tempo"),
    "timesignature": ("timesignature", "time_signature"),
    "keyscale": ("keyscale", "key", "scale"),
    "duration": ("duration", "length"),
}
_FORMATTED = re.compile(r"# Instruction.*?# Caption(?P<caption>.*?)(?:# Metas|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """The strings of a song: ``text`` for the whole text encoder, ``lyrics`` for its token embedding."""

    text: str
    lyrics: str


def render_prompt(song: Song, instruction: str = TEXT2MUSIC) -> Prompt:
    """The prompt of ``song``. Its ``seconds`` should be the duration of the audio; ``None`` prints upstream's 30."""
    metadata = song_metadata(song.bpm, song.key, song.time_signature, song.seconds)
    return Prompt(
        caption_prompt(plain_caption(song.caption), metadata_block(metadata), instruction),
        lyric_prompt(song.lyrics if song.lyrics.strip() else INSTRUMENTAL, song.language),
    )


def caption_prompt(caption: str, metadata: str, instruction: str = TEXT2MUSIC) -> str:
    """The text encoder's string. A colon is appended to ``instruction`` where it is missing."""
    instruction = instruction if instruction.endswith(":") else f"{instruction}:"
    return f"# Instruction\n{instruction}\n\n# Caption\n{caption}\n\n# Metas\n{metadata}{END}\n"


def lyric_prompt(lyrics: str, language: str) -> str:
    """The lyric encoder's string."""
    return f"# Languages\n{language}\n\n# Lyric\n{lyrics}{END}"


def song_metadata(
    bpm: float | str | None, key: str | None, time_signature: str | None, seconds: float | None
) -> dict[str, float | str]:
    """Metadata as in upstream's inference path (``_build_metadata_dict``): blank and 0 are unknown."""
    metadata = {"bpm": bpm or UNKNOWN, "keyscale": _or_unknown(key), "timesignature": _or_unknown(time_signature)}
    if seconds is not None and seconds > 0:
        metadata["duration"] = f"{int(seconds)} seconds"
    return metadata


def metadata_block(metadata: Mapping[str, object] | str | None) -> str:
    """The four metadata lines (upstream ``_parse_metas``); unknown values are ``N/A``. Returns a string as it is."""
    if isinstance(metadata, str):
        return metadata
    if not isinstance(metadata, Mapping):
        metadata = {}
    values = {
        name: next((metadata[alias] for alias in aliases if alias in metadata), UNKNOWN)
        for name, aliases in _ALIASES.items()
    }
    return (
        f"- bpm: {values['bpm']}\n- timesignature: {values['timesignature']}\n"
        f"- keyscale: {values['keyscale']}\n- duration: {_duration(values['duration'])}\n"
    )


def plain_caption(caption: str) -> str:
    """The caption in a formatted prompt, otherwise ``caption`` itself (``extract_caption_from_sft_format``)."""
    formatted = _FORMATTED.search(caption)
    return formatted["caption"].strip() if formatted else caption


def task_instruction(task: str, tracks: str | Sequence[str] | None = None) -> str:
    """The instruction line of ``task`` (``generate_instruction``); unknown tasks get that of text2music."""
    if task not in _TRACK_INSTRUCTIONS:
        return _INSTRUCTIONS.get(task, TEXT2MUSIC)
    named, unnamed = _TRACK_INSTRUCTIONS[task]
    names = [tracks] if isinstance(tracks, str) else list(tracks or [])
    return named.format(" | ".join(name.upper() for name in names)) if names else unnamed


def _or_unknown(value: str | None) -> str:
    return value if value and value.strip() else UNKNOWN


def _duration(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{int(value)} seconds"
    return value if isinstance(value, str) and value != UNKNOWN else "30 seconds"
