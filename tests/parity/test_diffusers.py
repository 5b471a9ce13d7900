"""Against an independent implementation: the same random weights through ours and through diffusers' port.

Its XL condition encoder is left out: it never prepends the timbre token that the XL checkpoints were trained with.
Whole songs are therefore compared in the single-width family, with the settings that both have: Euler, APG or none.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import tiny_checkpoint, with_oobleck
from torch import Tensor, nn

from acestep.flow import APG, NoGuidance, Sampler, Shifted
from acestep.flow.noise import initial_noise
from acestep.models.acestep import ENCODER_SIZES, AceStep, AceStepConfig
from acestep.models.autoencoder import Oobleck, OobleckConfig
from acestep.pipeline.pipeline import Pipeline
from acestep.songs import Song
from acestep.types import Conditions
from acestep.weights.save import save_checkpoint

pytest.importorskip("diffusers", reason="a development dependency")

from diffusers import AceStepPipeline, AutoencoderOobleck
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder

TOLERANCE = 1e-5
RENAMES = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
    "proj_in.1": "proj_in_conv",
    "proj_out.1": "proj_out_conv",
}
SMALL = AceStepConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    encoder_hidden_size=None,
    encoder_intermediate_size=None,
    encoder_num_attention_heads=None,
    encoder_num_key_value_heads=None,
    num_lyric_encoder_hidden_layers=2,
    num_timbre_encoder_hidden_layers=1,
    num_attention_pooler_hidden_layers=1,
    sliding_window=4,
    text_hidden_dim=24,
    fsq_dim=32,
    initializer_range=0.2,
)
WIDE = AceStepConfig(
    hidden_size=80,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    encoder_hidden_size=64,
    encoder_intermediate_size=96,
    encoder_num_attention_heads=4,
    encoder_num_key_value_heads=4,
    num_lyric_encoder_hidden_layers=3,
    num_timbre_encoder_hidden_layers=2,
    sliding_window=11,
    text_hidden_dim=40,
    fsq_dim=64,
    initializer_range=0.1,
)

WIDE_SINGLE = replace(WIDE, fsq_dim=WIDE.hidden_size, **dict.fromkeys(ENCODER_SIZES))


@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["single-width", "two-width"])
@pytest.mark.parametrize("frames", [24, 61])
@torch.no_grad()
def test_decoder(config: AceStepConfig, frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    ours = _network(config, generator)
    theirs = _decoder(ours)
    x_t, conditions = _inputs(config, frames, generator)
    t, r = torch.tensor([0.3, 1.0]), torch.tensor([0.3, 0.25])
    expected = theirs(x_t, t, r, conditions.states, conditions.context, return_dict=False)[0]
    torch.testing.assert_close(ours.velocity(x_t, t, conditions, r), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("times", "allowed"),
    # Halves and wholes are exact in bfloat16, so that only the arithmetic rounds; other times it rounds too, we do not.
    [((0.5, 1.0), 1.05), ((0.3, 0.97), 0.2)],
    ids=["exact times", "rounded times"],
)
@pytest.mark.parametrize("config", [SMALL, WIDE], ids=["single-width", "two-width"])
@torch.no_grad()
def test_decoder_in_bfloat16(config: AceStepConfig, times: tuple[float, float], allowed: float) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor(times)
    errors = torch.zeros(2)
    for _ in range(6):
        ours = _network(config, generator).bfloat16()
        theirs = _decoder(ours).bfloat16()
        x_t, conditions = _inputs(config, 61, generator)
        x_t, half = x_t.bfloat16(), conditions.to("cpu", torch.bfloat16)
        arguments = (x_t, t.bfloat16(), t.bfloat16(), half.states, half.context)
        exact = (x_t.float(), t, t, half.states.float(), half.context.float())
        expected = deepcopy(theirs).float()(*exact, return_dict=False)[0]
        results = ours.velocity(x_t, t, half), theirs(*arguments, return_dict=False)[0]
        errors += torch.stack([(result - expected).square().mean() for result in results])
    assert errors[0] ** 0.5 <= allowed * errors[1] ** 0.5


@pytest.mark.parametrize("config", [SMALL, WIDE_SINGLE], ids=["small", "wide"])
@pytest.mark.parametrize("tokens", [5, 40])
@torch.no_grad()
def test_single_width_condition_encoder(config: AceStepConfig, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    ours = _network(config, generator)
    theirs = AceStepConditionEncoder(
        **_sizes(config.encoder),
        text_hidden_dim=config.text_hidden_dim,
        num_lyric_encoder_hidden_layers=config.num_lyric_encoder_hidden_layers,
        num_timbre_encoder_hidden_layers=config.num_timbre_encoder_hidden_layers,
    )
    silence = {"silence_latent": theirs.silence_latent, "null_condition_emb": ours.null_condition_emb}
    theirs.load_state_dict(_renamed(ours.encoder) | silence)
    arguments = (
        _normal(generator, 2, 7, config.text_hidden_dim),
        torch.arange(7) < torch.tensor([[7], [3]]),
        _normal(generator, 2, tokens, config.text_hidden_dim),
        torch.arange(tokens) < torch.tensor([[2], [tokens]]),
        _normal(generator, 3, 12, 64),
        torch.tensor([1, 0, 1]),
    )
    states, mask = ours.encoder(*arguments)
    expected, expected_mask = theirs(*arguments)
    torch.testing.assert_close(states, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(mask, expected_mask.bool())


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, AceStepPipeline]:
    """One checkpoint of random weights in one diffusers folder, opened by us and by diffusers."""
    folder = tmp_path_factory.mktemp("single")
    network = _network(replace(SMALL, text_hidden_dim=16, timbre_fix_frame=750), torch.Generator().manual_seed(0))
    checkpoint = replace(
        with_oobleck(tiny_checkpoint(folder / "text")),
        network_config={name: value for name, value in network.config.to_dict().items() if value is not None},
        network=network.state_dict(),
    )
    save_checkpoint(checkpoint, folder / "diffusers", "diffusers")
    theirs = AceStepPipeline.from_pretrained(folder / "diffusers")
    theirs.set_progress_bar_config(disable=True)
    return Pipeline.from_pretrained(folder / "diffusers"), theirs


@pytest.mark.parametrize(("steps", "shift", "scale"), [(6, 1.0, 1.0), (12, 3.0, 7.0), (16, 1.0, 4.0)])
@pytest.mark.parametrize("seconds", [0.44, 3.0])
def test_whole_songs(
    pipelines: tuple[Pipeline, AceStepPipeline], steps: int, shift: float, scale: float, seconds: float
) -> None:
    ours, theirs = pipelines
    song = Song(
        caption="a calm piano piece",
        lyrics="[verse]\nla la",
        language="fr",
        bpm=100,
        key="C major",
        time_signature="3",
        seconds=seconds,
        seed=5,
    )
    song = ours.resolve(song)
    guidance = APG(scale=scale) if scale > 1 else NoGuidance()
    (latents,) = ours.latents([song], Sampler(schedule=Shifted(steps=steps, shift=shift), guidance=guidance))
    (expected,) = theirs(
        prompt=song.caption,
        lyrics=song.lyrics,
        vocal_language=song.language,
        bpm=song.bpm,
        keyscale=song.key,
        timesignature=song.time_signature,
        audio_duration=song.seconds,
        num_inference_steps=steps,
        shift=shift,
        guidance_scale=scale,
        latents=initial_noise((1, *latents.shape), song.seed),
        output_type="latent",
        return_dict=False,
    )
    torch.testing.assert_close(latents, expected[0], atol=1e-4, rtol=0)
    (other,) = ours.latents(
        [replace(song, lyrics="[chorus]\nlo")], Sampler(schedule=Shifted(steps=2), guidance=guidance)
    )
    (same,) = ours.latents([song], Sampler(schedule=Shifted(steps=2), guidance=guidance))
    assert (other - same).abs().max() > 1e-2  # weights to which the words matter


@pytest.mark.parametrize(("ratios", "width"), [((2, 3), 8), ((2, 4, 5), 12)])
@torch.no_grad()
def test_oobleck(ratios: tuple[int, ...], width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    config = OobleckConfig(
        encoder_hidden_size=width,
        decoder_input_channels=width // 2,
        decoder_channels=width,
        downsampling_ratios=ratios,
        channel_multiples=tuple(range(1, len(ratios) + 1)),
    )
    ours = Oobleck(config)
    ours.init_weights(generator)
    for name, parameter in ours.named_parameters():
        if name.endswith(("alpha", "beta")):
            parameter.normal_(0, 0.3, generator=generator)
    theirs = AutoencoderOobleck(
        encoder_hidden_size=width,
        downsampling_ratios=list(ratios),
        channel_multiples=list(config.channel_multiples),
        decoder_channels=width,
        decoder_input_channels=width // 2,
        audio_channels=2,
        sampling_rate=48000,
    )
    theirs.load_state_dict(ours.state_dict())
    audio = _normal(generator, 2, 2, 7 * config.hop + 3)
    posterior, expected = ours.encode(audio), theirs.encode(audio).latent_dist
    torch.testing.assert_close(posterior.mean.mT, expected.mean, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(posterior.scale.mT, expected.std, atol=TOLERANCE, rtol=TOLERANCE)
    decoded = theirs.decode(posterior.mean.mT).sample
    torch.testing.assert_close(ours.decode(posterior.mean), decoded, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def _network(config: AceStepConfig, generator: torch.Generator) -> AceStep:
    network = AceStep(config).eval()
    network.init_weights(generator)
    for name, parameter in network.named_parameters():
        if "norm" in name or name.endswith("bias"):  # start values of 1 and 0 would hide a missing one
            parameter.add_(_normal(generator, *parameter.shape), alpha=0.1)
    return network


def _decoder(network: AceStep) -> AceStepTransformer1DModel:
    """Diffusers' DiT with the weights of ``network``'s."""
    config = network.config
    theirs = AceStepTransformer1DModel(
        **_sizes(config.dit.stack),
        num_hidden_layers=config.num_hidden_layers,
        encoder_hidden_size=config.encoder.hidden_size,
        layer_types=list(config.dit.stack.layer_types),
    )
    theirs.load_state_dict(_renamed(network.decoder))
    return theirs


def _inputs(config: AceStepConfig, frames: int, generator: torch.Generator) -> tuple[Tensor, Conditions]:
    everything = torch.ones(2, frames, dtype=torch.bool)
    conditions = Conditions(
        states=_normal(generator, 2, 9, config.encoder.hidden_size),
        mask=everything[:, :9],
        context=_normal(generator, 2, frames, 128),
        frame_mask=everything,
    )
    return _normal(generator, 2, frames, 64), conditions


def _sizes(stack: Any) -> dict[str, Any]:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
    )
    return {name: getattr(stack, name) for name in names}


def _renamed(module: nn.Module) -> dict[str, Tensor]:
    renamed = {}
    for name, value in module.state_dict().items():
        for ours, theirs in RENAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)
