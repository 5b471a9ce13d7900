"""Songs to what the condition encoder reads. The only place where text becomes tensors, for all who need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.conditioning.lyrics import LETTERS_A_SECOND, WORDS_A_SECOND, seconds_to_sing
from acestep.conditioning.masks import Layout, lay_out, tiled
from acestep.conditioning.prompt import render
from acestep.models.language import TextEncoder
from acestep.types import ConditionInputs, Song


@dataclass(frozen=True)
class Conditioner:
    """Renders, tokenizes and encodes songs, and lays silence where a text-to-music request has no audio.

    Args:
        text_encoder: the frozen language network.
        silence: latents of digital silence, ``(1, Ts, C)``; it is not constant in time, and zeros would not do.
        reference_frames: length of the timbre reference that stands for "none"; 750 (30 s) in the release.
        encode_padding: run pad tokens through the text encoder, as upstream does; see ``TextEncoder.states``.
    """

    text_encoder: TextEncoder
    silence: Float[Tensor, "1 ts c"]
    reference_frames: int = 750
    encode_padding: bool = False

    def encode(
        self, songs: Sequence[Song], frames: Sequence[int], layouts: Sequence[Layout] | None = None
    ) -> ConditionInputs:
        """A batch of songs, ``frames`` latent frames each, padded on the right to the longest.

        A song's ``seconds`` go into its prompt as they are: fill them in before. Padded frames hold silence from its
        start, as upstream pads. ``layouts`` say what each song starts from; left out, all are text-to-music.
        """
        if len(songs) != len(frames):
            raise ValueError(f"frames: {len(frames)} lengths for {len(songs)} songs; need one each")
        if layouts is None:
            layouts = [lay_out("text2music", None, self.silence, length) for length in frames]
        text, text_mask, lyrics, lyrics_mask = self.read(songs, [layout.instruction for layout in layouts])
        longest, channels = max(frames), self.silence.shape[-1]
        padded = [self.padded(layout, longest) for layout in layouts]
        none = self.no_reference().to(text)
        references = [none if layout.references is None else layout.references.to(text) for layout in layouts]
        counts = torch.tensor([len(group) for group in references], device=text.device)
        lengths = torch.tensor(list(frames), device=text.device)
        return ConditionInputs(
            text=text,
            text_mask=text_mask,
            lyrics=lyrics,
            lyrics_mask=lyrics_mask,
            references=torch.cat(references),
            reference_index=torch.arange(len(songs), device=text.device).repeat_interleave(counts),
            source=torch.stack([layout.source.to(text) for layout in padded]),
            chunk_mask=torch.stack([layout.generate for layout in padded])[..., None].to(text).repeat(1, 1, channels),
            is_cover=torch.tensor([layout.is_cover for layout in layouts], device=text.device),
            frame_mask=torch.arange(longest, device=text.device) < lengths[:, None],
        )

    def read(
        self, songs: Sequence[Song], instructions: Sequence[str]
    ) -> tuple[Float[Tensor, "b lt d"], Bool[Tensor, "b lt"], Float[Tensor, "b ll d"], Bool[Tensor, "b ll"]]:
        """Features of the songs' prompts and of their lyrics, each with its mask."""
        prompts = [render(song, instruction) for song, instruction in zip(songs, instructions, strict=True)]
        states = self.text_encoder.states([prompt.text for prompt in prompts], self.encode_padding)
        return *states, *self.text_encoder.embed([prompt.lyrics for prompt in prompts])

    def padded(self, layout: Layout, frames: int) -> Layout:
        """``layout`` at the length of the batch."""
        rest = frames - len(layout.source)
        source = torch.cat([layout.source, tiled(self.silence, rest)[0].to(layout.source)])
        return replace(layout, source=source, generate=F.pad(layout.generate, (0, rest), value=True))

    def no_reference(self) -> Float[Tensor, "1 tr c"]:
        """The timbre reference of a song that has none."""
        return tiled(self.silence, self.reference_frames)

    def check(self, song: Song) -> None:
        """Refuse lyrics of which the end would not be read."""
        most, tokens = self.text_encoder.max_lyric_tokens, self.text_encoder.count_tokens(render(song).lyrics)
        if tokens > most:
            raise ValueError(f"song.lyrics: have {tokens} tokens, and {most} are read; shorten them")

    def remarks(self, song: Song) -> list[str]:
        """What a person should know about a resolved ``song`` that can be made, but perhaps not as meant."""
        said = []
        needed = seconds_to_sing(song.lyrics)
        if song.seconds is not None and needed > song.seconds:
            said.append(
                f"song.lyrics: singing them takes about {needed:.0f} s, the song lasts {song.seconds:g} s (estimate: "
                f"{WORDS_A_SECOND:g} words, or {LETTERS_A_SECOND:g} letters of unspaced writing, a second); shorten "
                "them, or raise song.seconds"
            )
        most, tokens = self.text_encoder.max_text_tokens, self.text_encoder.count_tokens(render(song).text)
        if tokens > most:
            said.append(
                f"song.caption: the prompt has {tokens} tokens, and {most} are read; tempo, key and duration stand "
                "last and are lost first"
            )
        return said
