"""The whole network of an ACE-Step v1.5 checkpoint: condition encoder, tokenizer, DiT. Knows no text, no waveform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acestep.models.attention import FULL, SLIDING
from acestep.models.cached_dit import Generation
from acestep.models.conditioner import ConditionEncoder
from acestep.models.dit import DiT, DiTConfig, Padding
from acestep.models.layers import StackConfig
from acestep.models.tokenizer import AudioDetokenizer, AudioTokenizer
from acestep.types import ConditionInputs, Conditions, VelocityField

# Published keys that say nothing about the network.
UNUSED = {
    "architectures",
    "auto_map",
    "data_proportion",
    "dtype",
    "is_lego_sft",
    "lyric_alignment_layers_config",
    "max_position_embeddings",
    "model_version",
    "num_audio_decoder_hidden_layers",
    "tie_word_embeddings",
    "timestep_mu",
    "timestep_sigma",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
# Published keys with the one value this network implements.
FIXED = {
    "model_type": "acestep",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "rope_scaling": None,
    "fsq_input_num_quantizers": 1,
}
# Published keys in which the families differ, so that no default can be right.
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ENCODER_SIZES = (
    "encoder_hidden_size",
    "encoder_intermediate_size",
    "encoder_num_attention_heads",
    "encoder_num_key_value_heads",
)
ENCODER_DEPTHS = (
    "num_lyric_encoder_hidden_layers",
    "num_timbre_encoder_hidden_layers",
    "num_attention_pooler_hidden_layers",
)


@dataclass(frozen=True, kw_only=True)
class AceStepConfig:
    """Sizes under the names of the published ``config.json``; the defaults are XL SFT's.

    ``encoder_*`` sizes come all together (the XL family: an encoder of its own width and a learned timbre token)
    or all ``None`` (the single-width family: the encoder has the DiT's sizes). ``layer_types=None`` alternates
    sliding and full layers. ``timbre_fix_frame`` is the length of a reference in latent frames. ``is_turbo`` says that
    the weights are distilled for few steps without guidance; the network is the same. ``padding`` is ours.
    """

    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    encoder_hidden_size: int | None = 2048
    encoder_intermediate_size: int | None = 6144
    encoder_num_attention_heads: int | None = 16
    encoder_num_key_value_heads: int | None = 8
    num_lyric_encoder_hidden_layers: int = 8
    num_timbre_encoder_hidden_layers: int = 4
    num_attention_pooler_hidden_layers: int = 2
    layer_types: tuple[str, ...] | None = None
    use_sliding_window: bool = True
    sliding_window: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    attention_bias: bool = False
    text_hidden_dim: int = 1024
    timbre_hidden_dim: int = 64
    audio_acoustic_hidden_dim: int = 64
    in_channels: int = 192
    timbre_fix_frame: int = 750
    patch_size: int = 2
    pool_window_size: int = 5
    fsq_dim: int = 2048
    fsq_input_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    initializer_range: float = 0.02
    is_turbo: bool = False
    padding: Padding = Padding.upstream

    def __post_init__(self) -> None:
        alternating = tuple(FULL if i % 2 else SLIDING for i in range(self.num_hidden_layers))
        object.__setattr__(self, "layer_types", alternating if self.layer_types is None else tuple(self.layer_types))
        object.__setattr__(self, "fsq_input_levels", tuple(self.fsq_input_levels))
        object.__setattr__(self, "padding", Padding(self.padding))
        given = [name for name in ENCODER_SIZES if getattr(self, name) is not None]
        if given and len(given) < len(ENCODER_SIZES):
            missing = ", ".join(name for name in ENCODER_SIZES if name not in given)
            raise ValueError(f"{given[0]}={getattr(self, given[0])}: {missing} must be given too, or none of them")
        self._check()

    def _check(self) -> None:
        assert self.layer_types is not None
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries: need num_hidden_layers={self.num_hidden_layers}, "
                "or leave it out for sliding and full in turn"
            )
        for name in ENCODER_DEPTHS:
            if not 1 <= getattr(self, name) <= self.num_hidden_layers:
                raise ValueError(
                    f"{name}={getattr(self, name)}: need 1 to num_hidden_layers={self.num_hidden_layers}; "
                    "encoder layers take their type from the first entries of layer_types"
                )
        channels = self.audio_acoustic_hidden_dim
        if self.in_channels != 3 * channels:
            raise ValueError(
                f"in_channels={self.in_channels}: need 3 x audio_acoustic_hidden_dim={channels}, "
                "for source latents, chunk mask and noisy latents"
            )
        if self.fsq_dim != self.encoder.hidden_size:
            raise ValueError(f"fsq_dim={self.fsq_dim}: need the condition encoder's width {self.encoder.hidden_size}")
        for name in ("patch_size", "pool_window_size", "text_hidden_dim", "timbre_hidden_dim", "timbre_fix_frame"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: need at least 1")
        if min(self.fsq_input_levels, default=0) < 2:
            raise ValueError(f"fsq_input_levels={self.fsq_input_levels}: need at least 2 levels in every dimension")

    @classmethod
    def from_dict(cls, published: Mapping[str, Any]) -> AceStepConfig:
        """From a published ``config.json`` (or this class's own fields). Unknown keys are refused.

        Without ``is_turbo``, its ``model_version`` says whether it is one, as diffusers reads it.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(published) - known - UNUSED - FIXED.keys())
        if unknown:
            raise ValueError(f"{unknown[0]}={published[unknown[0]]!r}: not a key of an ACE-Step v1.5 config; remove it")
        for name, value in FIXED.items():
            if published.get(name, value) != value:
                raise ValueError(f"{name}={published[name]!r}: only {value!r} is implemented")
        for name in REQUIRED:
            if name not in published:
                raise ValueError(f"{name}: missing from the config; the families differ in it, so it has no default")
        absent: dict[str, Any] = dict.fromkeys(ENCODER_SIZES)
        absent["is_turbo"] = published.get("model_version") == "turbo"
        return cls(**absent | {name: value for name, value in published.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON has them; :meth:`from_dict` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["padding"] = self.padding.value
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def single_width(self) -> bool:
        """Whether the encoder shares the DiT's sizes (the 2B family)."""
        return self.encoder_hidden_size is None

    @property
    def encoder(self) -> StackConfig:
        """Sizes of every encoder stack: lyric, timbre, tokenizer and detokenizer."""
        stack = self.dit.stack
        if self.single_width:
            return stack
        return replace(stack, **{name.removeprefix("encoder_"): getattr(self, name) for name in ENCODER_SIZES})

    @property
    def dit(self) -> DiTConfig:
        """Sizes of the DiT."""
        assert self.layer_types is not None
        stack = StackConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            layer_types=self.layer_types,
            sliding_window=self.sliding_window if self.use_sliding_window else None,
            rms_norm_eps=self.rms_norm_eps,
            rope_theta=self.rope_theta,
            attention_bias=self.attention_bias,
        )
        return DiTConfig(
            stack=stack,
            condition_size=self.encoder_hidden_size or self.hidden_size,
            channels=self.audio_acoustic_hidden_dim,
            patch_size=self.patch_size,
            padding=self.padding,
        )


class AceStep(nn.Module):
    """Upstream ``AceStepConditionGenerationModel``, parameter for parameter."""

    def __init__(self, config: AceStepConfig) -> None:
        super().__init__()
        self.config = config
        encoder, channels = config.encoder, config.audio_acoustic_hidden_dim
        window, depth = config.pool_window_size, config.num_attention_pooler_hidden_layers
        self.decoder = DiT(config.dit)
        self.encoder = ConditionEncoder(
            encoder,
            text_features=config.text_hidden_dim,
            timbre_features=config.timbre_hidden_dim,
            lyric_layers=config.num_lyric_encoder_hidden_layers,
            timbre_layers=config.num_timbre_encoder_hidden_layers,
            timbre_token=not config.single_width,
        )
        self.tokenizer = AudioTokenizer(
            encoder, channels=channels, window=window, depth=depth, levels=config.fsq_input_levels
        )
        self.detokenizer = AudioDetokenizer(encoder, channels=channels, window=window, depth=depth)
        self.null_condition_emb = nn.Parameter(torch.zeros(1, 1, encoder.hidden_size))

    def condition(self, inputs: ConditionInputs, silence: Float[Tensor, "1 ts c"]) -> Conditions:
        """Encode a batch's conditions (upstream ``prepare_condition``), with gradients.

        Where ``is_cover``, ``hints`` (or the tokenizer's round trip) replace the source latents. ``silence`` fills
        up the last code's frames.
        """
        states, mask = self.encoder(
            inputs.text,
            inputs.text_mask,
            inputs.lyrics,
            inputs.lyrics_mask,
            inputs.references,
            inputs.reference_index,
        )
        source = inputs.source
        if inputs.is_cover.any():
            hints = self.round_trip(source, silence) if inputs.hints is None else inputs.hints
            if hints.shape[1] < source.shape[1]:
                raise ValueError(
                    f"hints have {hints.shape[1]} frames: need the source's {source.shape[1]}; add silence"
                )
            source = torch.where(inputs.is_cover[:, None, None], hints[:, : source.shape[1]], source)
        context = torch.cat([source, inputs.chunk_mask.to(source.dtype)], dim=-1)
        return Conditions(states=states, mask=mask, context=context, frame_mask=inputs.frame_mask)

    def velocity(
        self,
        x_t: Float[Tensor, "b t c"],
        t: Float[Tensor, " b"],
        conditions: Conditions,
        r: Float[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t c"]:
        """The learned velocity field; see ``DiT.forward``."""
        return self.decoder(x_t, t, conditions, r)

    def generation(self, compiled: bool = False) -> VelocityField:
        """The velocity field of one generation: :meth:`velocity`, quicker; the weights are to stay as they are."""
        return Generation(self.decoder, compiled)

    def null(self, conditions: Conditions) -> Conditions:
        """The same batch without condition: every state is the learned null embedding; context and masks stay."""
        states = self.null_condition_emb.to(conditions.states.dtype).expand_as(conditions.states)
        return replace(conditions, states=states)

    def round_trip(self, latents: Float[Tensor, "b t c"], silence: Float[Tensor, "1 ts c"]) -> Float[Tensor, "b th c"]:
        """Latents through 5 Hz codes and back, up to a whole number of codes long."""
        quantized, _ = self.tokenizer(latents, silence)
        return self.detokenizer(quantized)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Start values for training from scratch, as upstream's: a function of ``generator`` alone."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            last = name.rpartition(".")[2]
            if last == "bias":
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif last == "scale_shift_table":
                parameter.normal_(0.0, self.config.hidden_size**-0.5, generator=generator)
            elif name in ("null_condition_emb", "encoder.timbre_encoder.special_token"):
                parameter.normal_(0.0, 1.0, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)
