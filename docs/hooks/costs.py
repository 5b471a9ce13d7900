"""What the XL experiments take on paper: operations, hours and storage on 1, 8 and 64 cards, by the formula shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acestep.config.compose import composed
from acestep.config.run import build
from acestep.memory import GIB, PUBLISHED_PARAMETERS, predict
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.modes import Memory
from acestep.training.flops import PEAKS, StepCost

CARDS = (1, 8, 64)
CARD = "H100"
SHARE = 0.35
"""Of the card's peak that is assumed to be reached."""
TOKENS = 256
"""Condition tokens of a song: words of caption and lyrics, timbre."""
LATENT_BYTES = 2 * 2 * 64
"""Of a latent frame in a store: mean and scale of 64 channels in float16."""
FRAMES_PER_SECOND = 25
SONG_SECONDS = 180.0
SWEEP_SECONDS = (30, 120, 240)


@dataclass(frozen=True)
class Plan:
    """One experiment: how many songs it trains on, and what its run writes."""

    experiment: str
    songs: int
    runs: int = 1

    def row(self) -> str:
        """Its line of the table."""
        cfg = composed("train", [f"experiment={self.experiment}", "weights=W", "data.path=D"])
        with torch.device("meta"):
            network = AceStep(build(cfg.model))
        adapter = build(cfg.adapter) or None
        if adapter is None:
            network.requires_grad_(False)
            network.decoder.requires_grad_(True)
        else:
            network.requires_grad_(False)
        frames = cfg.data.crop_frames
        again = (4 / 3 if adapter is None else 3 / 2) if cfg.trainer.recompute.name == "full" else 1
        flops = StepCost(network)((1, frames), TOKENS) * again
        devices = int(cfg.trainer.devices) if str(cfg.trainer.devices).isdigit() else 1
        seen = cfg.trainer.max_steps * cfg.data.batch_size * cfg.trainer.accumulate * devices * self.runs
        hours = [seen * flops / (cards * PEAKS[CARD] * SHARE) / 3600 for cards in CARDS]
        trained = sum(p.numel() for p in network.decoder.parameters() if p.requires_grad)
        states = 16 * trained / GIB
        store = self.songs * SONG_SECONDS * FRAMES_PER_SECOND * LATENT_BYTES / GIB
        memory = " / ".join(f"{states / cards:.0f}" if trained else "11" for cards in CARDS)
        told = " / ".join(_hours(value) for value in hours)
        counts = f"{self.songs:,} | {seen:,} | {flops / 1e12:.0f}"
        return f"| `{self.experiment}` | {counts} | {told} | {memory} | {store:.1f} |"


PLANS = (
    Plan("xl_lora_style", 100),
    Plan("xl_dropout_ablation", 2_000, runs=4),
    Plan("xl_sft_muse", 116_000),
    Plan("xl_repaint_ft", 20_000),
)


def costs_page() -> str:
    """The page."""
    lines = "\n".join(plan.row() for plan in PLANS)
    peak = f"{PEAKS[CARD] / 1e12:.0f}"
    config = build(composed("train", ["model=xl_sft", "weights=W", "data.path=D"]).model)
    told = {"sweep": _sweep(config), "memory": f"{_sweep_memory(config):.1f}"}
    return TEXT.format(lines=lines, card=CARD, peak=peak, share=SHARE, tokens=TOKENS, **told)


def _sweep(config: AceStepConfig) -> str:
    """Hours of ``xl_cfg_sweep``: prompts x takes x scales x lengths, two evaluations at each of 50 steps."""
    with torch.device("meta"):
        network = AceStep(config)
    network.requires_grad_(False)
    cost, scales, takes, prompts, steps = StepCost(network), 7, 2, 100, 50
    forward = sum(cost((1, seconds * FRAMES_PER_SECOND), TOKENS) / 2 for seconds in SWEEP_SECONDS)
    total = prompts * takes * scales * forward * 2 * steps
    return " / ".join(_hours(total / (cards * PEAKS[CARD] * SHARE) / 3600) for cards in CARDS)


def _sweep_memory(config: AceStepConfig) -> float:
    """GiB that the longest songs of ``xl_cfg_sweep`` take, in its batches of four."""
    others = {part: 2 * count for part, count in PUBLISHED_PARAMETERS.items()}
    stages = predict(config, others, Memory.full, max(SWEEP_SECONDS), torch.bfloat16, batch_size=4)
    return stages.peak(offload=False) / GIB


def _hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.0f} min"


TEXT = """# What the XL experiments take

On paper, by this formula; nothing here was measured, since no card was at hand when it was written. The share of its
peak that a card really reached stands in each run's `card.md`: put it in the place of {share}.

```text
hours = songs seen x operations of a song / (cards x peak x share) / 3600
songs seen = trainer.max_steps x data.batch_size x trainer.accumulate x trainer.devices (x runs of an ablation)
operations of a song = 2 N a token forward, 2 N for the gradient of inputs, 2 N for that of trained weights, attention,
                       and the forward pass again where trainer.recompute=full; {tokens} condition tokens a song
peak = {peak} TFLOP/s, bf16, of one {card}; share = {share}
states = 16 bytes a trained parameter (float32 weight, gradient, two moments), spread over the cards by FSDP2
store = songs x 180 s x 25 frames x 256 bytes (mean and scale, 64 channels, float16)
```

| experiment | songs | songs seen | TFLOP a song | hours on 1 / 8 / 64 | GiB of states on each | store, GiB |
|---|---|---|---|---|---|---|
{lines}

States are those of 1 / 8 / 64 cards; for adapters, the frozen weights and the adapter. On top come activations:
`python -m acestep bench memory --experiment NAME` predicts them, and the whole of a step. The same number of songs seen
on more cards means fewer steps of larger batches, or a smaller `trainer.accumulate`. A checkpoint of full fine-tuning
takes the states again on disk (67 GB), the result 10 GB in bfloat16; adapters take under 1.5 GB with their optimizer.
The audio itself need not be kept beside a store.

`xl_cfg_sweep` with 100 prompts, 7 scales, 3 lengths and 2 takes: {sweep} on 1 / 8 / 64 cards, and {memory} GiB on each;
`torchrun --nproc-per-node 8 evaluate.py` shares the songs.

Micro twins, minutes on two CPU cores: `micro_lora` (`xl_lora_style`), `micro_sft` (`xl_sft_muse`), `micro_cfg_dropout`
(`xl_dropout_ablation`), `micro_repaint_ft`, `micro_cfg_sweep`.
"""
