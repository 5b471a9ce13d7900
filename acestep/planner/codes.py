"""Audio codes: five a second, as text of the language model, and to and from latents by a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from acestep.conditioning.masks import TaskContext, tile_silence
from acestep.conditioning.prompt import task_instruction
from acestep.models.acestep import AceStep

CODES = 64_000
"""Size of the release's codebook; the published vocabularies have a few more code tokens, which are not used."""
CODES_PER_SECOND = 5


def write_codes(codes: Iterable[int]) -> str:
    """``codes`` as text: ``<|audio_code_N|>`` each.

    Raises:
        ValueError: a code is outside the codebook.
    """
    codes = list(codes)
    for code in codes:
        if not 0 <= code < CODES:
            raise ValueError(f"codes: {code} is not in the codebook; need 0 to {CODES - 1}")
    return "".join(f"<|audio_code_{code}|>" for code in codes)


@torch.no_grad()
def codes_to_latents(network: AceStep, codes: Sequence[Sequence[int]]) -> list[Float[Tensor, "t c"]]:
    """25 Hz latents of each song's codes, five frames a code: the ``ConditionInputs.hints`` of a cover.

    Raises:
        ValueError: a song has no codes, or a code that is not in the tokenizer's codebook.
    """
    for song in codes:
        check_codes(network, song)
    device = network.null_condition_emb.device
    return [
        network.detokenizer(network.tokenizer.quantizer.decode(torch.tensor([list(song)], device=device)))[0]
        for song in codes
    ]


def check_codes(network: AceStep, codes: Sequence[int]) -> None:
    """Raise ``ValueError`` if ``codes`` is empty or has a code outside the codebook of ``network``."""
    size = network.tokenizer.quantizer.codebook_size
    if not codes or not 0 <= min(codes) <= max(codes) < size:
        raise ValueError(
            f"song.codes: need at least one, each from 0 to {size - 1}, as this checkpoint's tokenizer has"
        )


@torch.no_grad()
def latents_to_codes(
    network: AceStep, latents: Sequence[Float[Tensor, "t c"]], silence: Float[Tensor, "1 ts c"]
) -> list[list[int]]:
    """The codes of each song's latents; the frames of a last, incomplete code are filled up from ``silence``."""
    weight = network.null_condition_emb
    return [network.tokenizer(song[None].to(weight), silence.to(weight))[1][0].tolist() for song in latents]


def planned_context(hint: Float[Tensor, "t c"], silence: Float[Tensor, "1 ts c"], frames: int) -> TaskContext:
    """The task context of a song of ``frames`` frames from codes: source ``hint``, instruction of a cover.

    ``is_cover`` is False, since ``hint`` has passed the tokenizer already. Frames after the end of the codes are
    silence, from its first frame on.
    """
    quiet = tile_silence(silence, max(0, frames - len(hint)))[0]
    source = torch.cat([hint[:frames], quiet.to(hint)])
    return TaskContext(
        source, torch.ones(frames, dtype=torch.bool), is_cover=False, instruction=task_instruction("cover")
    )
