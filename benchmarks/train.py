"""A training step of our DiT beside one of diffusers', full or LoRA: same weights, data, loss, optimiser and loop.

``python -m benchmarks.train --sizes 100m --seconds 60 --json FILE``; one row for each kind, seconds are per step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from acestep.models.acestep import AceStep
from acestep.training.flops import StepCost
from acestep.types import Conditions
from benchmarks.measure import CLOCKS, Row, add_timing, best_seconds, machine, matmul_peak, report
from benchmarks.sampler import SIZES, TOKENS, Case, diffusers_dit, random_conditions

PEER = "diffusers DiT"
PACKAGES = ("torch", "diffusers", "peft")
KINDS = ("lora", "full")
RANK = 16
OURS = ("q_proj", "k_proj", "v_proj", "o_proj")
THEIRS = ("to_q", "to_k", "to_v", "to_out.0")

Batch = tuple[Tensor, Tensor, Tensor, Conditions]
"""Noisy latents, times, the velocity to learn, conditions."""


def compare(case: Case, kind: str, rounds: int, peak: float, clock: Callable[[], float]) -> Row:
    """Both implementations' steps on one case; the error is that of the losses they report."""
    generator = torch.Generator().manual_seed(0)
    network = AceStep(SIZES[case.size])
    with torch.no_grad():
        network.init_weights(generator)
    peer = diffusers_dit(network).train()
    network.decoder.train()
    batch = _batch(case, network, generator)
    if kind == "lora":
        _add_lora(network.decoder, OURS)
        _add_lora(peer, THEIRS)
    ours = _steps(network.decoder, lambda x, t, c: network.velocity(x, t, c), batch)
    theirs = _steps(peer, lambda x, t, c: peer(x, t, t, c.states, c.context, return_dict=False)[0], batch)
    losses: tuple[list[float], list[float]] = ([], [])
    for seen, steps in zip(losses, (ours, theirs), strict=True):
        seen.extend(next(steps) for _ in range(2))
    ours_s, peer_s = best_seconds(lambda: next(ours), lambda: next(theirs), rounds=rounds, clock=clock)
    flops = int(StepCost(network)((case.batch, batch[0].shape[1]), TOKENS))
    return Row(
        name=f"{kind} {replace(case, steps=1).name}",
        ours_s=ours_s,
        peer=PEER,
        peer_s=peer_s,
        ratio=peer_s / ours_s,
        flops=flops,
        share_of_peak=flops / ours_s / peak,
        error=max(abs(a - b) for a, b in zip(*losses, strict=True)),
    )


def _steps(
    module: nn.Module, velocity: Callable[[Tensor, Tensor, Conditions], Tensor], batch: Batch
) -> Iterator[float]:
    """The loop: each step's loss. Fused AdamW, as our training has by default."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    x_t, t, target, conditions = batch
    while True:
        loss = (velocity(x_t, t, conditions) - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def _add_lora(module: nn.Module, targets: Sequence[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets)), module)


def _batch(case: Case, network: AceStep, generator: torch.Generator) -> Batch:
    conditions = random_conditions(case, network.config, generator)
    clean, noise = (torch.randn(*conditions.context.shape[:2], 64, generator=generator) for _ in range(2))
    t = torch.rand(case.batch, generator=generator)
    return clean + t[:, None, None] * (noise - clean), t, noise - clean, conditions


def main(arguments: Sequence[str] | None = None) -> None:
    """Every combination of the sizes, durations, batches and kinds asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["micro"], help="default micro")
    parser.add_argument("--seconds", nargs="+", type=float, default=[30.0], help="of music (default 30)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="songs a step (default 1)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="default both")
    add_timing(parser)
    options = parser.parse_args(arguments)
    peak = matmul_peak(clock=CLOCKS[options.clock])
    rows = [
        compare(
            Case(size=size, seconds=seconds, batch=batch, steps=1), kind, options.rounds, peak, CLOCKS[options.clock]
        )
        for size, seconds, batch, kind in product(options.sizes, options.seconds, options.batch, options.kinds)
    ]
    report(rows, machine(peak, PACKAGES), options.json)


if __name__ == "__main__":
    main()
