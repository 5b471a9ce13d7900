"""Start values for a network hardly wider than a patch, which would else spend its youth on learning to carry noise."""

from __future__ import annotations

import torch

from acestep.models.acestep import AceStep

QUIET = 0.12
"""How much the layers hear and say at first in the channels that carry the noise."""
LOUD = 3.0
"""How much more cross-attention says at first than self-attention."""
SHARP = 2.0
"""Norm weights of the lyric encoder's queries and keys: words tell their places apart from the start."""


@torch.no_grad()
def init_passthrough(network: AceStep, generator: torch.Generator) -> None:
    """Start from scratch with ``x_t`` passed through to the velocity, beside what the untrained layers say.

    A patch of ``x_t`` fills as many channels of the residual stream as it has numbers, and the last layer reads them
    back; source latents and conditions meet in the channels that are left, to which the layers mostly listen. Not
    upstream's start (:meth:`AceStep.init_weights`), whose networks are twenty patches wide.

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
            weight[:taken].mul_(QUIET)
            weight.mul_(LOUD if "cross_attn" in name else 1.0)
        elif weight.ndim == 2 and "cross_attn.k_proj" not in name and "cross_attn.v_proj" not in name:
            weight[:, :taken].mul_(QUIET)
            weight[:, taken:].mul_(0.7 * (width / (width - taken)) ** 0.5)
    for name, weight in network.encoder.lyric_encoder.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(SHARP)
