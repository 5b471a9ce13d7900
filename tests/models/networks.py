"""Tiny networks and random batches for the tests of ``acestep.models``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from acestep.flow import CFG, Euler, Linear, Sampler
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.types import ConditionInputs, Conditions

TINY = AceStepConfig(
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    encoder_hidden_size=16,
    encoder_intermediate_size=24,
    encoder_num_attention_heads=2,
    encoder_num_key_value_heads=1,
    num_lyric_encoder_hidden_layers=2,
    num_timbre_encoder_hidden_layers=1,
    num_attention_pooler_hidden_layers=1,
    sliding_window=8,
    text_hidden_dim=12,
    timbre_hidden_dim=4,
    audio_acoustic_hidden_dim=4,
    in_channels=12,
    fsq_dim=16,
    initializer_range=0.2,
)


def network(config: AceStepConfig = TINY, seed: int = 0) -> AceStep:
    """A network of random weights, none of them trivial."""
    generator = torch.Generator().manual_seed(seed)
    result = AceStep(config).eval()
    result.init_weights(generator)
    for parameter in result.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return result


def random_conditions(generator: torch.Generator, frames: int, tokens: int, config: AceStepConfig = TINY) -> Conditions:
    """One song's conditions without padding."""
    return Conditions(
        states=normal(generator, 1, tokens, config.encoder.hidden_size),
        mask=torch.ones(1, tokens, dtype=torch.bool),
        context=normal(generator, 1, frames, 2 * config.audio_acoustic_hidden_dim),
        frame_mask=torch.ones(1, frames, dtype=torch.bool),
    )


def random_inputs(
    generator: torch.Generator, frames: int, text: int, lyrics: int, config: AceStepConfig = TINY
) -> ConditionInputs:
    """One song's condition inputs without padding, with one reference."""
    channels = config.audio_acoustic_hidden_dim
    return ConditionInputs(
        text=normal(generator, 1, text, config.text_hidden_dim),
        text_mask=torch.ones(1, text, dtype=torch.bool),
        lyrics=normal(generator, 1, lyrics, config.text_hidden_dim),
        lyrics_mask=torch.ones(1, lyrics, dtype=torch.bool),
        references=normal(generator, 1, 6, config.timbre_hidden_dim),
        reference_index=torch.zeros(1, dtype=torch.long),
        source=normal(generator, 1, frames, channels),
        chunk_mask=torch.ones(1, frames, channels),
        is_cover=torch.zeros(1, dtype=torch.bool),
        frame_mask=torch.ones(1, frames, dtype=torch.bool),
    )


def batch(inputs: list[ConditionInputs], generator: torch.Generator) -> ConditionInputs:
    """Songs as one batch, padded at the end with random numbers, which a correct mask ignores."""

    def stack(name: str) -> Tensor:
        values = [getattr(song, name) for song in inputs]
        longest = max(value.shape[1] for value in values)
        return torch.cat([pad(value, longest, generator) for value in values])

    return replace(
        inputs[0],
        **{name: stack(name) for name in ("text", "lyrics", "source", "chunk_mask")},
        **{name: stack(name) for name in ("text_mask", "lyrics_mask", "frame_mask")},
        references=torch.cat([song.references for song in inputs]),
        reference_index=torch.arange(len(inputs)),
        is_cover=torch.cat([song.is_cover for song in inputs]),
    )


def pad(value: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """``value`` lengthened along axis 1: with False if boolean, else with random numbers."""
    shape = (value.shape[0], length - value.shape[1], *value.shape[2:])
    filler = torch.zeros(shape, dtype=torch.bool) if value.dtype == torch.bool else normal(generator, *shape)
    return torch.cat([value, filler], dim=1)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=generator)


def two_songs(frames: int, seed: int = 0) -> tuple[Conditions, Tensor]:
    """Conditions of two songs, one shorter in both frames and tokens, and their latents."""
    generator = torch.Generator().manual_seed(seed)
    both = random_conditions(generator, frames, 7).cat(random_conditions(generator, frames, 7))
    frame_mask, mask = both.frame_mask.clone(), both.mask.clone()
    frame_mask[1, frames - 9 :] = False
    mask[0, 5:] = False
    return replace(both, frame_mask=frame_mask, mask=mask), normal(generator, 2, frames, 4)


def compiled_errors(batches: list[tuple[int, int]]) -> tuple[list[float], list[int]]:
    """Errors of a compiled ``CachedDiT`` after each batch, and the number of compiled programs then.

    Args:
        batches: songs and frames of each.
    """
    model = network()
    errors, programs = [], []
    for songs, frames in batches:
        two, noise = two_songs(frames)
        index = torch.arange(songs) % 2
        noise, conditions = noise[index], Conditions(*(part[index] for part in vars(two).values()))
        null = model.null(conditions)
        sampler = Sampler(Linear(steps=2), Euler(), CFG())
        made = sampler(model.cached_velocity(compiled=True), noise, conditions, null)
        errors.append(float((made - sampler(model.velocity, noise, conditions, null)).abs().max()))
        programs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return errors, programs
