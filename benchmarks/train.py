"""A training step of our DiT compared with diffusers', full or LoRA: same weights, data, loss, optimiser and loop.

``python -m acestep bench train --sizes 100m --seconds 60 --json FILE``; one row for each kind, seconds are per step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from acestep.models.acestep import AceStep
from acestep.training.trainer import TrainerConfig
from acestep.types import Conditions
from benchmarks.measure import (
    CLOCKS,
    COLUMNS,
    Row,
    Run,
    add_cases,
    bench_parser,
    compared,
    in_forms,
    machine,
    matmul_peak,
    pairings,
    report,
)
from benchmarks.sampler import PEER, SIZES, Case, diffusers_dit, random_conditions

PACKAGES = ("torch", "diffusers", "peft")
KINDS = ("lora", "full")
RANK = 16
OURS = ("q_proj", "k_proj", "v_proj", "o_proj")
THEIRS = ("to_q", "to_k", "to_v", "to_out.0")

M = TypeVar("M", bound=nn.Module)
Batch = tuple[Tensor, Tensor, Tensor, Conditions]
"""Noisy latents, timesteps, target velocity, conditions."""


def compare(
    case: Case, kind: str, rounds: int, peak: float, clock: Callable[[], float], compiled: bool = False
) -> list[Row]:
    """Compare the steps of both implementations on one case; the error is the difference of the losses.

    With ``compiled``, with torch.compile of each layer too.
    """
    network = AceStep(SIZES[case.size])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network.init_weights(generator)
    batch = _batch(case, network, generator)

    def ours(compiled: bool) -> Iterator[float]:
        model = deepcopy(network)
        decoder = _trained(model.decoder, kind, OURS)
        TrainerConfig(compile=compiled).prepare(decoder.layers)
        return _steps(decoder, lambda x, t, c: model.velocity(x, t, c), batch)

    def theirs(compiled: bool) -> Iterator[float]:
        model = _trained(diffusers_dit(network), kind, THEIRS)
        for layer in model.layers if compiled else ():
            layer.compile()
        return _steps(model, lambda x, t, c: model(x, t, t, c.states, c.context, return_dict=False)[0], batch)

    loops = in_forms(PEER, ours, theirs, compiled)
    losses = {name: [next(steps) for _ in range(2)] for name, steps in loops.items()}
    tasks = {name: partial(next, steps) for name, steps in loops.items()}

    def error(form: str, peer: str) -> float:
        return max(abs(a - b) for a, b in zip(losses[form], losses[peer], strict=True))

    name, pairs = f"{kind} {replace(case, steps=1).name}", pairings(PEER, compiled)
    return compared(name, tasks, pairs, error, rounds=rounds, peak=peak, clock=clock)


def _steps(
    module: nn.Module, velocity: Callable[[Tensor, Tensor, Conditions], Tensor], batch: Batch
) -> Iterator[float]:
    """The loss of each step, with fused AdamW, the default of our training."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    x_t, t, target, conditions = batch
    while True:
        loss = (velocity(x_t, t, conditions) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _trained(module: M, kind: str, targets: Sequence[str]) -> M:
    """``module`` prepared for training in full or with LoRA."""
    if kind == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets)), module)
    return module.train()


def _batch(case: Case, network: AceStep, generator: torch.Generator) -> Batch:
    conditions = random_conditions(case, network.config, generator)
    clean, noise = (torch.randn(*conditions.context.shape[:2], 64, generator=generator) for _ in range(2))
    t = torch.rand(case.batch, generator=generator)
    return clean + t[:, None, None] * (noise - clean), t, noise - clean, conditions


def main(arguments: Sequence[str] | None = None) -> None:
    """All combinations of the options."""
    parser = bench_parser("train", __doc__, COLUMNS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what is trained (default both)")
    add_cases(parser, list(SIZES), (30.0,))
    run = Run.parse(parser, arguments)
    options = run.options
    peak = matmul_peak(clock=CLOCKS[options.clock])
    rows = [
        row
        for size, seconds, batch, kind in product(options.sizes, options.seconds, options.batch, options.kinds)
        for row in compare(
            Case(size=size, seconds=seconds, batch=batch, steps=1),
            kind,
            options.rounds,
            peak,
            CLOCKS[options.clock],
            options.compiled,
        )
    ]
    report(rows, machine(PACKAGES, peak), run)


if __name__ == "__main__":
    main()
