"""Conditioning of upstream's v1.5 trainer, which differs from its inference; for ablations and parity tests.

All other songs go through ``prompt.render_prompt`` and ``Conditioner``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.conditioning.encode import Conditioner
from acestep.conditioning.masks import TaskContext
from acestep.conditioning.prompt import (
    INSTRUMENTAL,
    UNKNOWN,
    caption_prompt,
    metadata_block,
)
from acestep.data.captions import TagPosition
from acestep.songs import Song

TRAINER_TEXT_TOKENS, TRAINER_LYRIC_TOKENS = 256, 512


def training_prompt(
    record: Mapping[str, Any], use_genre: bool = False, tag_position: TagPosition | str = TagPosition.prepend
) -> str:
    """Upstream's ``build_simple_prompt``: seconds are printed as they are, and a missing duration as 0.

    Args:
        record: ``caption``, ``genre``, ``custom_tag``, ``bpm``, ``keyscale``, ``timesignature``, ``duration``;
            ``prompt_override`` (``genre`` or ``caption``) has precedence over ``use_genre``.
        use_genre: use the genre as caption, where the record has one.
        tag_position: of ``custom_tag`` in the caption.
    """
    by_genre = record["prompt_override"] == "genre" if record.get("prompt_override") else use_genre
    caption = (by_genre and record.get("genre")) or record.get("caption", "")
    metadata = {name: record.get(name) or UNKNOWN for name in ("bpm", "timesignature", "keyscale")}
    metadata["duration"] = f"{record.get('duration', 0)} seconds"
    return caption_prompt(
        TagPosition(tag_position).insert(record.get("custom_tag") or "", caption), metadata_block(metadata)
    )


@dataclass(frozen=True)
class TrainerConditioner(Conditioner):
    """The conditioning of upstream's v1.5 trainer.

    * Lyrics have no header with their language, and are truncated to 512 tokens.
    * Prompt and lyrics are padded to 256 and 512 tokens, to which a DiT with ``padding=upstream`` attends.
    * The missing timbre reference is a single frame of zeros.
    * Padded frames are zeros, and marked as given.

    Source: upstream ``dataset_builder_modules/preprocess_lyrics.py``, ``preprocess_text.py`` and
    ``preprocess_encoder.py``, and ``data_module.py`` (``collate_preprocessed_batch``).
    """

    @classmethod
    def like(cls, conditioner: Conditioner) -> TrainerConditioner:
        return cls(**{field.name: getattr(conditioner, field.name) for field in fields(conditioner)})

    def encode_text(
        self, songs: Sequence[Song], instructions: Sequence[str]
    ) -> tuple[Float[Tensor, "b lt d"], Bool[Tensor, "b lt"], Float[Tensor, "b ll d"], Bool[Tensor, "b ll"]]:
        """As the base class; ``instructions`` are ignored, since the trainer has only one task."""
        texts = [training_prompt(_upstream_record(song)) for song in songs]
        states = self.text_encoder.states(texts, encode_padding=True, min_length=TRAINER_TEXT_TOKENS)
        lyrics = [song.lyrics if song.lyrics.strip() else INSTRUMENTAL for song in songs]
        return *states, *self.text_encoder.embed(lyrics, TRAINER_LYRIC_TOKENS, TRAINER_LYRIC_TOKENS)

    def pad_context(self, context: TaskContext, frames: int) -> TaskContext:
        rest = frames - len(context.source)
        return replace(
            context,
            source=F.pad(context.source, (0, 0, 0, rest)),
            generate=F.pad(context.generate, (0, rest), value=False),
        )

    def empty_reference(self) -> Float[Tensor, "1 tr c"]:
        return self.silence.new_zeros(1, 1, self.silence.shape[-1])


def _upstream_record(song: Song) -> dict[str, Any]:
    """``song`` by upstream's field names; its data sets have whole seconds."""
    record = {"caption": song.caption, "bpm": song.bpm, "keyscale": song.key, "timesignature": song.time_signature}
    return record | {"duration": int(song.seconds or 0)}
