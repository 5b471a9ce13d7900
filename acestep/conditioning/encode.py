"""Songs to what the condition encoder reads. The only place where text becomes tensors, for all who need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

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

    def encode(self, songs: Sequence[Song], frames: Sequence[int]) -> ConditionInputs:
        """A batch of text-to-music songs, ``frames`` latent frames each, padded on the right to the longest.

        A song's ``seconds`` go into its prompt as they are: fill them in before. Padded frames hold silence from its
        start, as upstream pads.
        """
        if len(songs) != len(frames):
            raise ValueError(f"frames: {len(frames)} lengths for {len(songs)} songs; need one each")
        prompts = [render(song) for song in songs]
        text, text_mask = self.text_encoder.states([prompt.text for prompt in prompts], self.encode_padding)
        lyrics, lyrics_mask = self.text_encoder.embed([prompt.lyrics for prompt in prompts])
        longest = max(frames)
        silence = self.silence.to(text)
        source = torch.cat([torch.cat([tiled(silence, n), tiled(silence, longest - n)], dim=1) for n in frames])
        lengths = torch.tensor(list(frames), device=text.device)
        return ConditionInputs(
            text=text,
            text_mask=text_mask,
            lyrics=lyrics,
            lyrics_mask=lyrics_mask,
            references=tiled(silence, self.reference_frames).expand(len(songs), -1, -1),
            reference_index=torch.arange(len(songs), device=text.device),
            source=source,
            chunk_mask=torch.ones_like(source),
            is_cover=torch.zeros(len(songs), dtype=torch.bool, device=text.device),
            frame_mask=torch.arange(longest, device=text.device) < lengths[:, None],
        )


def tiled(silence: Float[Tensor, "1 ts c"], frames: int) -> Float[Tensor, "1 t c"]:
    """The first ``frames`` frames of ``silence``, repeated from its start where it is too short (upstream tiles)."""
    repeats = -(-frames // silence.shape[1])
    return silence.repeat(1, max(repeats, 1), 1)[:, :frames]
