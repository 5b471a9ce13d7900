"""The whole network of an ACE-Step v1.5 checkpoint: condition encoder, audio tokenizer, DiT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acestep.models.attention import FULL, SLIDING
from acestep.models.cached_dit import CachedDiT
from acestep.models.conditioner import ConditionEncoder, null_condition
from acestep.models.dit import DiT, DiTConfig, Padding
from acestep.models.layers import StackConfig
from acestep.models.tokenizer import AudioDetokenizer, AudioTokenizer
from acestep.types import ConditionInputs, Conditions, VelocityField

# Published keys without an effect on the network.
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
# Published keys of which only this value is implemented.
FIXED = {
    "model_type": "acestep",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "rope_scaling": None,
    "fsq_input_num_quantizers": 1,
}
# Published keys that differ between the families, so that there is no default.
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

    Args:
        hidden_size: width of the DiT.
        intermediate_size: inner width of the DiT's MLPs.
        num_hidden_layers: layers of the DiT.
        num_attention_heads: query heads of the DiT.
        num_key_value_heads: key and value heads of the DiT.
        head_dim: width of an attention head.
        encoder_hidden_size: width of the condition encoder; null: the DiT's. The four sizes are null together.
        encoder_intermediate_size: inner width of the encoder's MLPs; null: the DiT's.
        encoder_num_attention_heads: query heads of the encoder; null: the DiT's.
        encoder_num_key_value_heads: key and value heads of the encoder; null: the DiT's.
        num_lyric_encoder_hidden_layers: layers of the lyric encoder.
        num_timbre_encoder_hidden_layers: layers of the timbre encoder.
        num_attention_pooler_hidden_layers: layers of the tokenizer's attention pooler, and of the detokenizer.
        layer_types: attention of each layer, sliding or full; null alternates, sliding first.
        use_sliding_window: whether sliding layers attend within a window.
        sliding_window: tokens on either side that a sliding layer attends to.
        rms_norm_eps: constant added in RMS norms.
        rope_theta: base of the rotary position embedding.
        attention_bias: whether the attention projections have biases.
        text_hidden_dim: width of the text encoder's embeddings.
        timbre_hidden_dim: channels of a timbre reference.
        audio_acoustic_hidden_dim: channels of the latents.
        in_channels: channels of the DiT's input: source latents, chunk mask and noisy latents.
        timbre_fix_frame: length of a timbre reference in latent frames.
        patch_size: latent frames of a DiT token.
        pool_window_size: latent frames of a 5 Hz code.
        fsq_dim: width of the tokenizer, which is the encoder's.
        fsq_input_levels: levels of finite scalar quantisation in each of its dimensions.
        initializer_range: standard deviation of initial weights.
        is_turbo: whether the weights are distilled for few steps without guidance; the network is the same.
        padding: whether attention leaves out the padding of a batch (``masked``) or not (``upstream``); not a published
            key.
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
        """From a published ``config.json``, or from :meth:`to_dict`.

        Without ``is_turbo``, ``model_version`` decides, as in diffusers.

        Raises:
            ValueError: a key is unknown or missing, or its value is not implemented.
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
        """The fields as JSON types; the inverse of :meth:`from_dict`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["padding"] = self.padding.value
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def single_width(self) -> bool:
        """Whether the encoder has the DiT's sizes (the 2B family)."""
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
        assert self.layer_types is not None
        sizes = {field.name: getattr(self, field.name) for field in fields(StackConfig)}
        stack = StackConfig(**sizes | ({} if self.use_sliding_window else {"sliding_window": None}))
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

        Where ``is_cover``, ``hints`` (or the tokenizer's round trip) replace the source latents. ``silence`` pads the
        last code's frames.

        Raises:
            ValueError: the hints are shorter than the source.
        """
        states, mask = self.encoder(
            inputs.text, inputs.text_mask, inputs.lyrics, inputs.lyrics_mask, inputs.references, inputs.reference_index
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
        """``DiT.forward``."""
        return self.decoder(x_t, t, conditions, r)

    def cached_velocity(self, compiled: bool = False) -> VelocityField:
        """A faster :meth:`velocity` for inference that caches conditions; weights must not change while it is used."""
        return CachedDiT(self.decoder, compiled)

    def null(self, conditions: Conditions) -> Conditions:
        """The unconditional counterpart of ``conditions``, see :func:`~acestep.models.conditioner.null_condition`."""
        return null_condition(self.null_condition_emb, conditions)

    def round_trip(self, latents: Float[Tensor, "b t c"], silence: Float[Tensor, "1 ts c"]) -> Float[Tensor, "b th c"]:
        """Latents to 5 Hz codes and back; the length is rounded up to a whole number of codes."""
        quantized, _ = self.tokenizer(latents, silence)
        return self.detokenizer(quantized)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Upstream's initialisation for training from scratch, from ``generator`` only."""
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
