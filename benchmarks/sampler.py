"""Our sampler compared with diffusers' DiT in a bare Euler loop with guidance: same weights, inputs and process.

``python -m acestep bench sampler --sizes micro --seconds 8 30 --json FILE``; weights are random, times are per batch.
On a GPU: ``--sizes xl --seconds 240 --steps 50 --device cuda --dtype bfloat16 --compiled``.
For reference: the unavoidable matrix products and full attention alone, for the same number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from torch import Tensor, nn

from acestep.config.run import build, compose_config
from acestep.flow import CFG, Euler, Linear, Sampler
from acestep.memory import CPU
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.attention import FULL
from acestep.pipeline.build import named_dtype
from acestep.types import Conditions
from acestep.weights.diffusers import to_diffusers
from benchmarks.measure import (
    CLOCKS,
    COLUMNS,
    PRODUCTS,
    Row,
    Run,
    add_cases,
    bench_parser,
    compared,
    in_forms,
    largest_difference,
    machine,
    matmul_peak,
    on_device,
    pairings,
    report,
)

PEER = "diffusers DiT"
PACKAGES = ("torch", "diffusers")
FRAMES_PER_SECOND = 25
TOKENS = 400
SCALE = 7.0


def _sizes(
    width: int, inner: int, layers: int, heads: tuple[int, int], head: int, window: int, condition: int
) -> AceStepConfig:
    """XL's architecture in another size; ``heads`` are query and key heads. Only the DiT matters here."""
    return AceStepConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head,
        sliding_window=window,
        encoder_hidden_size=condition,
        encoder_intermediate_size=condition,
        encoder_num_attention_heads=1,
        encoder_num_key_value_heads=1,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        num_attention_pooler_hidden_layers=1,
        fsq_dim=condition,
    )


SIZES = {
    "tiny": _sizes(width=32, inner=48, layers=2, heads=(2, 1), head=16, window=8, condition=16),
    "micro": _sizes(width=128, inner=192, layers=6, heads=(4, 2), head=32, window=32, condition=96),
    "100m": _sizes(width=768, inner=2304, layers=12, heads=(12, 4), head=64, window=128, condition=512),
}
PUBLISHED = {"2b": "sft_2b", "xl": "xl_sft"}
"""Published sizes by their files in ``configs/model``; too slow on a CPU."""


def sized(size: str) -> AceStepConfig:
    """The model of ``size``."""
    if size in SIZES:
        return SIZES[size]
    config: AceStepConfig = build(compose_config("train", [f"model={PUBLISHED[size]}"]).model)
    return config


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to generate: model size, seconds of music, songs at a time, Euler steps."""

    size: str
    seconds: float
    batch: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.size} {self.seconds:g} s x {self.batch}, {self.steps} steps"


@torch.no_grad()
def compare(
    case: Case,
    rounds: int,
    peak: float,
    clock: Callable[[], float],
    compiled: bool = False,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> list[Row]:
    """Compare both implementations on one case, with torch.compile too if ``compiled``."""
    generator = torch.Generator().manual_seed(0)
    network = AceStep(sized(case.size)).eval()
    network.init_weights(generator)
    conditions = random_conditions(case, network.config, generator).to(device, dtype)
    network.to(device, dtype)
    null = network.null(conditions)
    noise = torch.randn(len(conditions.states), conditions.context.shape[1], 64, generator=generator).to(device, dtype)
    sampler = Sampler(schedule=Linear(steps=case.steps), solver=Euler(), guidance=CFG(scale=SCALE))

    def ours(compiled: bool) -> Callable[[], Tensor]:
        return lambda: sampler(network.cached_velocity(compiled), noise, conditions, null)

    def theirs(compiled: bool) -> Callable[[], Tensor]:
        peer = diffusers_dit(network)
        for layer in peer.layers if compiled else ():
            layer.compile()
        return lambda: euler(peer, noise, conditions, null, case.steps)

    tasks: dict[str, Callable[[], Any]] = {**in_forms(PEER, ours, theirs, compiled)}
    error = largest_difference({name: task() for name, task in tasks.items()})
    tasks[PRODUCTS] = products(network, case)
    return compared(case.name, tasks, pairings(PEER, compiled), error, rounds=rounds, peak=peak, clock=clock)


def products(network: AceStep, case: Case) -> Callable[[], None]:
    """The unavoidable operations of ``case``, one after the other.

    Per step and layer: the linear layers of both branches, except the null branch's cross-attention, and full
    attention. No norms, and no attention scores of sliding layers and cross-attention.
    """
    stack = network.config.dit.stack
    patches = -(-round(case.seconds * FRAMES_PER_SECOND) // network.config.patch_size)
    one = case.batch * patches
    like = network.null_condition_emb
    x, inner, heads = (
        torch.randn(2 * one, width).to(like)
        for width in (stack.hidden_size, stack.intermediate_size, stack.num_attention_heads * stack.head_dim)
    )
    query, shared = (
        torch.randn(2 * case.batch, count, patches, stack.head_dim).to(like)
        for count in (stack.num_attention_heads, stack.num_key_value_heads)
    )

    def run() -> None:
        for _ in range(case.steps):
            for layer, kind in zip(network.decoder.layers, stack.layer_types, strict=True):
                for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                    linear(x)
                if kind == FULL:
                    F.scaled_dot_product_attention(query, shared, shared, enable_gqa=True)
                layer.self_attn.o_proj(heads)
                layer.cross_attn.q_proj(x[:one])
                layer.cross_attn.o_proj(heads[:one])
                layer.mlp.gate_proj(x)
                layer.mlp.up_proj(x)
                layer.mlp.down_proj(inner)

    return run


def euler(
    model: nn.Module, noise: Tensor, conditions: Conditions, null: Conditions, steps: int, scale: float = SCALE
) -> Tensor:
    """The peer's minimal loop: Euler with guidance on a doubled batch."""
    states, context = torch.cat([conditions.states, null.states]), torch.cat([conditions.context] * 2)
    times = torch.linspace(1, 0, steps + 1, device=noise.device)
    x = noise
    for now, next_time in pairwise(times):
        t = now.expand(2 * len(x)).to(x)
        conditional, unconditional = model(torch.cat([x, x]), t, t, states, context, return_dict=False)[0].chunk(2)
        x = x + (next_time - now).to(x) * (unconditional + scale * (conditional - unconditional))
    return x


def diffusers_dit(network: AceStep) -> AceStepTransformer1DModel:
    """Diffusers' DiT with the weights of ``network``'s."""
    stack = network.config.dit.stack
    model = AceStepTransformer1DModel(
        hidden_size=stack.hidden_size,
        intermediate_size=stack.intermediate_size,
        num_hidden_layers=len(stack.layer_types),
        num_attention_heads=stack.num_attention_heads,
        num_key_value_heads=stack.num_key_value_heads,
        head_dim=stack.head_dim,
        sliding_window=stack.sliding_window,
        layer_types=list(stack.layer_types),
        encoder_hidden_size=network.config.encoder.hidden_size,
    ).eval()
    model.to(network.null_condition_emb)
    model.load_state_dict({to_diffusers(f"decoder.{name}")[1]: w for name, w in network.decoder.state_dict().items()})
    return model


def random_conditions(case: Case, config: AceStepConfig, generator: torch.Generator) -> Conditions:
    """Random conditions of ``case``'s length."""
    frames = round(case.seconds * FRAMES_PER_SECOND)
    return Conditions(
        states=torch.randn(case.batch, TOKENS, config.encoder.hidden_size, generator=generator),
        mask=torch.ones(case.batch, TOKENS, dtype=torch.bool),
        context=torch.randn(case.batch, frames, 2 * config.audio_acoustic_hidden_dim, generator=generator),
        frame_mask=torch.ones(case.batch, frames, dtype=torch.bool),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """All combinations of the options."""
    parser = bench_parser("sampler", __doc__, COLUMNS)
    parser.add_argument("--steps", type=int, default=8, help="Euler steps, each with two predictions (default 8)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--dtype", default="float32", help="of weights and activations (default float32)")
    add_cases(parser, [*SIZES, *PUBLISHED], (8.0, 30.0))
    run = Run.parse(parser, arguments)
    options = run.options
    device, dtype = torch.device(options.device), named_dtype(options.dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch finds no GPU here; leave --device out")
    clock = on_device(CLOCKS[options.clock], device)
    peak = matmul_peak(clock=clock, device=device, dtype=dtype)
    cases = product(options.sizes, options.seconds, options.batch)
    rows = [
        row
        for size, seconds, batch in cases
        for row in compare(
            Case(size=size, seconds=seconds, batch=batch, steps=options.steps),
            options.rounds,
            peak,
            clock,
            options.compiled,
            device,
            dtype,
        )
    ]
    report(rows, machine(PACKAGES, peak, device), run)


if __name__ == "__main__":
    main()
