"""Tensor names of other layouts, to and from the published ones that our modules carry.

Sources: diffusers 0.42 ``transformer_ace_step.py`` and ``modeling_ace_step.py``; torch's weight norm parametrisation.
"""

from __future__ import annotations

COMPONENTS = {
    "decoder.": "transformer",
    "encoder.": "condition_encoder",
    "tokenizer.": "audio_tokenizer",
    "detokenizer.": "audio_token_detokenizer",
}
"""Prefix of the published names, and the diffusers component that holds those tensors without it."""

NULL = "null_condition_emb"
SILENCE = "silence_latent"

_PAIRS = (
    (".q_proj.", ".to_q."),
    (".k_proj.", ".to_k."),
    (".v_proj.", ".to_v."),
    (".o_proj.", ".to_out.0."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
)
_CONVOLUTIONS = (("proj_in.1.", "proj_in_conv."), ("proj_out.1.", "proj_out_conv."))
_WEIGHT_NORM = (("parametrizations.weight.original0", "weight_g"), ("parametrizations.weight.original1", "weight_v"))


def to_diffusers(name: str) -> tuple[str, str]:
    """The component and the name there of a published tensor name."""
    if name == NULL:
        return "condition_encoder", NULL
    prefix = next(prefix for prefix in COMPONENTS if name.startswith(prefix))
    component, name = COMPONENTS[prefix], name.removeprefix(prefix)
    for published, theirs in _PAIRS:
        name = name.replace(published, theirs)
    for published, theirs in _CONVOLUTIONS:
        if component == "transformer" and name.startswith(published):
            name = theirs + name.removeprefix(published)
    return component, name


def from_diffusers(component: str, name: str) -> str:
    """The published name of a tensor of a diffusers component."""
    if component == "condition_encoder" and name in (NULL, SILENCE):
        return name
    for published, theirs in _CONVOLUTIONS:
        if component == "transformer" and name.startswith(theirs):
            name = published + name.removeprefix(theirs)
    for published, theirs in _PAIRS:
        name = name.replace(theirs, published)
    prefix = next(prefix for prefix, held in COMPONENTS.items() if held == component)
    return prefix + name


def autoencoder_name(name: str) -> str:
    """The published name of an autoencoder's tensor, given in the published or in torch's newer weight-norm style."""
    for newer, published in _WEIGHT_NORM:
        name = name.replace(newer, published)
    return name
