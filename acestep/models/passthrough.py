"""Initialisation that routes x_t through the residual stream, for widths near one patch."""

from __future__ import annotations

import torch

from acestep.models.acestep import AceStep

NOISE_CHANNEL_GAIN = 0.12
"""Factor on the initial weights that read from or write to the channels that carry x_t."""
CROSS_ATTENTION_GAIN = 3.0
"""Factor on the initial output of cross-attention relative to self-attention."""
LYRIC_NORM_WEIGHT = 2.0
"""Initial norm weight of the lyric encoder's queries and keys: sharper attention separates positions from the start."""


@torch.no_grad()
def init_passthrough(network: AceStep, generator: torch.Generator) -> None:
    """Initialise from scratch with an identity path from ``x_t`` to the velocity.

    The values of a patch of ``x_t`` enter as many channels of the residual stream, and the output projection reads
    them back. Source latents and conditions enter the other channels, from which the layers mostly read. A narrow
    network would otherwise learn slowly to carry the noise. Differs from upstream's initialisation
    (:meth:`AceStep.init_weights`), whose networks are twenty patches wide.

    Raises:
        ValueError: the network has no channels beside a patch.
    """
    network.init_weights(generator)
    decoder, width = network.decoder, network.config.hidden_size
    into, out = decoder.get_parameter("proj_in.1.weight"), decoder.get_parameter("proj_out.1.weight")  # (H, 3C, P)
    channels, patch = out.shape[1:]  # out is (H, C, P)
    taken = channels * patch
    if width <= taken:
        raise ValueError(
            f"model.hidden_size={width}: network=passthrough needs more than the {taken} numbers of a patch; "
            "use network=scratch or a wider model"
        )
    identity = torch.eye(taken).view(taken, patch, channels).transpose(1, 2)
    into.zero_()
    into[:taken, -channels:] = identity
    into[taken:, :-channels].normal_(0.0, 4 * into[0, :-channels].numel() ** -0.5, generator=generator)
    out.zero_()
    out[:taken] = identity
    for name, weight in decoder.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[:taken].mul_(NOISE_CHANNEL_GAIN)
            weight.mul_(CROSS_ATTENTION_GAIN if "cross_attn" in name else 1.0)
        elif weight.ndim == 2 and "cross_attn.k_proj" not in name and "cross_attn.v_proj" not in name:
            weight[:, :taken].mul_(NOISE_CHANNEL_GAIN)
            weight[:, taken:].mul_(0.7 * (width / (width - taken)) ** 0.5)
    for name, weight in network.encoder.lyric_encoder.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(LYRIC_NORM_WEIGHT)
