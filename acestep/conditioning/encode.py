"""From songs to condition inputs: the only place where text is encoded, for training, caching and generation alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.conditioning.masks import TaskContext, task_context, tile_silence
from acestep.conditioning.prompt import render_prompt
from acestep.models.language import TextEncoder
from acestep.songs import Song
from acestep.songs.metadata import SECTION_TAG
from acestep.types import ConditionInputs

WORDS_PER_SECOND = 3.0
"""Fast singing in languages with spaces between words; most songs have one to two words per second."""
LETTERS_PER_SECOND = 5.0
"""Fast singing in scripts in which a letter is a syllable or a word: Chinese, Japanese, Korean, Thai and others."""

_UNSPACED_LETTER = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass(frozen=True)
class Conditioner:
    """Renders, tokenizes and encodes songs; silence stands for missing audio.

    Args:
        text_encoder: the frozen language network.
        silence: latents of digital silence, ``(1, Ts, C)``; they vary over time and are not zero.
        reference_frames: length of the silent timbre reference of songs without one; 750 (30 s) in the release.
        encode_padding: run pad tokens through the text encoder, as upstream does; see ``TextEncoder.states``.
    """

    text_encoder: TextEncoder
    silence: Float[Tensor, "1 ts c"]
    reference_frames: int = 750
    encode_padding: bool = False

    def encode(
        self, songs: Sequence[Song], frames: Sequence[int], contexts: Sequence[TaskContext] | None = None
    ) -> ConditionInputs:
        """Encode a batch of songs, padded on the right to the longest with silence, as upstream pads.

        Args:
            songs: rendered as they are; ``seconds`` should be set.
            frames: length of each song in latent frames.
            contexts: what each song starts from; all are text-to-music by default.
        """
        if len(songs) != len(frames):
            raise ValueError(f"frames: {len(frames)} lengths for {len(songs)} songs; need one each")
        if contexts is None:
            contexts = [task_context("text2music", None, self.silence, length) for length in frames]
        text, text_mask, lyrics, lyrics_mask = self.encode_text(songs, [context.instruction for context in contexts])
        longest, channels = max(frames), self.silence.shape[-1]
        padded = [self.pad_context(context, longest) for context in contexts]
        empty = self.empty_reference().to(text)
        references = [empty if context.references is None else context.references.to(text) for context in contexts]
        counts = torch.tensor([len(group) for group in references], device=text.device)
        lengths = torch.tensor(list(frames), device=text.device)
        return ConditionInputs(
            text=text,
            text_mask=text_mask,
            lyrics=lyrics,
            lyrics_mask=lyrics_mask,
            references=torch.cat(references),
            reference_index=torch.arange(len(songs), device=text.device).repeat_interleave(counts),
            source=torch.stack([context.source.to(text) for context in padded]),
            chunk_mask=torch.stack([context.generate for context in padded])[..., None].to(text).repeat(1, 1, channels),
            is_cover=torch.tensor([context.is_cover for context in contexts], device=text.device),
            frame_mask=torch.arange(longest, device=text.device) < lengths[:, None],
        )

    def encode_text(
        self, songs: Sequence[Song], instructions: Sequence[str]
    ) -> tuple[Float[Tensor, "b lt d"], Bool[Tensor, "b lt"], Float[Tensor, "b ll d"], Bool[Tensor, "b ll"]]:
        """Text encoder states of the prompts and embeddings of the lyrics, each with its mask."""
        prompts = [render_prompt(song, instruction) for song, instruction in zip(songs, instructions, strict=True)]
        states = self.text_encoder.states([prompt.text for prompt in prompts], self.encode_padding)
        return *states, *self.text_encoder.embed([prompt.lyrics for prompt in prompts])

    def pad_context(self, context: TaskContext, frames: int) -> TaskContext:
        """``context`` padded to ``frames``."""
        rest = frames - len(context.source)
        source = torch.cat([context.source, tile_silence(self.silence, rest)[0].to(context.source)])
        return replace(context, source=source, generate=F.pad(context.generate, (0, rest), value=True))

    def empty_reference(self) -> Float[Tensor, "1 tr c"]:
        """The timbre reference of a song without one."""
        return tile_silence(self.silence, self.reference_frames)

    def check(self, song: Song) -> None:
        """Raise ``ValueError`` for lyrics that would be truncated."""
        most, tokens = self.text_encoder.max_lyric_tokens, self.text_encoder.count_tokens(render_prompt(song).lyrics)
        if tokens > most:
            raise ValueError(f"song.lyrics: have {tokens} tokens, and {most} are read; shorten them")

    def warnings(self, song: Song) -> list[str]:
        """Warnings about a resolved ``song`` that can be generated, but perhaps not as intended."""
        messages = []
        needed = seconds_to_sing(song.lyrics)
        if song.seconds is not None and needed > song.seconds:
            messages.append(
                f"song.lyrics: singing them takes about {needed:.0f} s, the song lasts {song.seconds:g} s (estimate: "
                f"{WORDS_PER_SECOND:g} words, or {LETTERS_PER_SECOND:g} letters of unspaced writing, a second); "
                "shorten them, or raise song.seconds"
            )
        most, tokens = self.text_encoder.max_text_tokens, self.text_encoder.count_tokens(render_prompt(song).text)
        if tokens > most:
            messages.append(
                f"song.caption: the prompt has {tokens} tokens, and {most} are read; tempo, key and duration stand "
                "last and are lost first"
            )
        return messages


def seconds_to_sing(lyrics: str) -> float:
    """A rough lower bound for the duration of ``lyrics``, without their section tags."""
    words = unicodedata.normalize("NFC", SECTION_TAG.sub(" ", lyrics))
    letters = len(_UNSPACED_LETTER.findall(words))
    spaced = len(_WORD.findall(_UNSPACED_LETTER.sub(" ", words)))
    return letters / LETTERS_PER_SECOND + spaced / WORDS_PER_SECOND
