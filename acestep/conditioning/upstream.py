"""What upstream's other doors make of a song: prompts of its direct helper, and all that its trainer conditions on.

They share the blocks of ``prompt`` and differ in what is looked up and how numbers print. Here for parity, for reading
prompts that those doors made, and for ablations; songs of ours go through ``prompt.render`` and ``Conditioner`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.conditioning.encode import Conditioner
from acestep.conditioning.masks import Layout
from acestep.conditioning.prompt import (
    INSTRUMENTAL,
    TEXT2MUSIC,
    UNKNOWN,
    Prompt,
    caption_prompt,
    lyric_prompt,
    metadata_block,
)
from acestep.data.captions import TagPosition
from acestep.types import Song

TRAINER_TEXT_TOKENS, TRAINER_LYRIC_TOKENS = 256, 512


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


@dataclass(frozen=True)
class TrainerConditioner(Conditioner):
    """What upstream's v1.5 trainer conditions on, for ablations: other text and other silence than its inference.

    * Lyrics stand alone, without the header that names their language, and end after 512 tokens.
    * Prompt and lyrics are padded to 256 and 512 tokens, which a DiT with ``padding=upstream`` reads.
    * A single frame of zeros stands for "no timbre reference".
    * Padded frames hold zeros, and count as given.

    Source: upstream ``dataset_builder_modules/preprocess_lyrics.py``, ``preprocess_text.py`` and
    ``preprocess_encoder.py``, and ``data_module.py`` (``collate_preprocessed_batch``).
    """

    @classmethod
    def like(cls, conditioner: Conditioner) -> TrainerConditioner:
        """One with the parts of ``conditioner``."""
        return cls(**{field.name: getattr(conditioner, field.name) for field in fields(conditioner)})

    def read(
        self, songs: Sequence[Song], instructions: Sequence[str]
    ) -> tuple[Float[Tensor, "b lt d"], Bool[Tensor, "b lt"], Float[Tensor, "b ll d"], Bool[Tensor, "b ll"]]:
        """Features of prompts and bare lyrics. The trainer knows one task, so ``instructions`` are not read."""
        texts = [training_prompt(_record(song)) for song in songs]
        states = self.text_encoder.states(texts, encode_padding=True, least=TRAINER_TEXT_TOKENS)
        lyrics = [song.lyrics if song.lyrics.strip() else INSTRUMENTAL for song in songs]
        return *states, *self.text_encoder.embed(lyrics, TRAINER_LYRIC_TOKENS, TRAINER_LYRIC_TOKENS)

    def padded(self, layout: Layout, frames: int) -> Layout:
        """``layout`` at the length of the batch, zeros at its end."""
        rest = frames - len(layout.source)
        return replace(
            layout,
            source=F.pad(layout.source, (0, 0, 0, rest)),
            generate=F.pad(layout.generate, (0, rest), value=False),
        )

    def no_reference(self) -> Float[Tensor, "1 tr c"]:
        """One frame of zeros."""
        return self.silence.new_zeros(1, 1, self.silence.shape[-1])


def _record(song: Song) -> dict[str, Any]:
    """``song`` under the names of upstream's data sets, whose durations are whole seconds."""
    record = {"caption": song.caption, "bpm": song.bpm, "keyscale": song.key, "timesignature": song.time_signature}
    return record | {"duration": int(song.seconds or 0)}
