"""Between latents and audio codes, through a checkpoint's own tokenizer: what the DiT hears of a plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.conditioning.masks import Layout, tiled
from acestep.conditioning.prompt import instruction
from acestep.models.acestep import AceStep


@torch.no_grad()
def hints(network: AceStep, codes: Sequence[Sequence[int]]) -> list[Float[Tensor, "t c"]]:
    """25 Hz latents of each song's codes, five frames a code: ``ConditionInputs.hints`` of a cover.

    Raises:
        ValueError: if a song has no codes, or one that the tokenizer does not have.
    """
    for song in codes:
        check_codes(network, song)
    device = network.null_condition_emb.device
    made = []
    for song in codes:
        quantized = network.tokenizer.quantizer.decode(torch.tensor([list(song)], device=device))
        made.append(network.detokenizer(quantized)[0])
    return made


def check_codes(network: AceStep, codes: Sequence[int]) -> None:
    """Refuse codes of which ``network`` does not have every one, or none at all."""
    size = network.tokenizer.quantizer.codebook_size
    if not codes or not 0 <= min(codes) <= max(codes) < size:
        raise ValueError(
            f"song.codes: need at least one, each from 0 to {size - 1}, as this checkpoint's tokenizer has"
        )


def planned_layout(hint: Float[Tensor, "t c"], silence: Float[Tensor, "1 ts c"], frames: int) -> Layout:
    """What a planned song of ``frames`` frames starts from: its ``hints``, under the instruction of a cover.

    Codes are through the tokenizer already, so that the layout is that of a cover without it. Where the codes end
    before the song does, silence follows, from its start.
    """
    quiet = tiled(silence, max(0, frames - len(hint)))[0]
    source = torch.cat([hint[:frames], quiet.to(hint)])
    return Layout(source, torch.ones(frames, dtype=torch.bool), is_cover=False, instruction=instruction("cover"))


@torch.no_grad()
def audio_codes(
    network: AceStep, latents: Sequence[Float[Tensor, "t c"]], silence: Float[Tensor, "1 ts c"]
) -> list[list[int]]:
    """The codes of each song's latents; ``silence`` fills up the last code's frames."""
    weight = network.null_condition_emb
    found = []
    for song in latents:
        _, codes = network.tokenizer(song[None].to(weight), silence.to(weight))
        found.append(codes[0].tolist())
    return found
