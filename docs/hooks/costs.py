"""Page on the cost of the XL experiments: operations, hours and storage on 1, 8 and 64 cards, computed by a formula."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from acestep.config.run import build, compose_config
from acestep.memory import GIB, PUBLISHED_PARAMETERS, estimate_memory
from acestep.memory_modes import MemoryMode
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.training.flops import PEAKS, StepFlops

CARDS = (1, 8, 64)
CARD = "H100"
SHARE = 0.35
"""Assumed share of the card's peak throughput (model FLOPs utilisation)."""
TOKENS = 256
"""Condition tokens of a song: caption, lyrics, timbre."""
LATENT_BYTES = 2 * 2 * 64
"""Bytes of a latent frame in a store: mean and scale of 64 channels in float16."""
FRAMES_PER_SECOND = 25
SONG_SECONDS = 180.0
SWEEP_SECONDS = (30, 120, 240)


@dataclass(frozen=True)
class ExperimentCost:
    """An experiment with the number of songs it trains on and of runs of its ablation."""

    experiment: str
    songs: int
    runs: int = 1

    def row(self) -> str:
        cfg = compose_config("train", [f"experiment={self.experiment}", "weights=W", "data.path=D"])
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
        flops = StepFlops(network)((1, frames), TOKENS) * again
        devices = int(cfg.trainer.devices) if str(cfg.trainer.devices).isdigit() else 1
        seen = cfg.trainer.max_steps * cfg.data.batch_size * cfg.trainer.accumulate * devices * self.runs
        hours = [seen * flops / (cards * PEAKS[CARD] * SHARE) / 3600 for cards in CARDS]
        trained = sum(p.numel() for p in network.decoder.parameters() if p.requires_grad)
        states = 16 * trained / GIB
        store = self.songs * SONG_SECONDS * FRAMES_PER_SECOND * LATENT_BYTES / GIB
        memory = " / ".join(f"{states / cards:.0f}" if trained else "11" for cards in CARDS)
        shown = " / ".join(_hours(value) for value in hours)
        counts = f"{self.songs:,} | {seen:,} | {flops / 1e12:.0f}"
        return f"| `{self.experiment}` | {counts} | {shown} | {memory} | {store:.1f} |"


EXPERIMENTS = (
    ExperimentCost("xl_lora_style", 100),
    ExperimentCost("xl_dropout_ablation", 2_000, runs=4),
    ExperimentCost("xl_sft_muse", 116_000),
    ExperimentCost("xl_repaint_ft", 20_000),
)


def costs_page() -> str:
    """The page as Markdown."""
    lines = "\n".join(plan.row() for plan in EXPERIMENTS)
    peak = f"{PEAKS[CARD] / 1e12:.0f}"
    config = build(compose_config("train", ["model=xl_sft", "weights=W", "data.path=D"]).model)
    values = {"sweep": _sweep(config), "memory": f"{_sweep_memory(config):.1f}"}
    return TEXT.format(lines=lines, card=CARD, peak=peak, share=SHARE, tokens=TOKENS, **values)


def _sweep(config: AceStepConfig) -> str:
    """Hours of ``xl_cfg_sweep``: prompts x takes x scales x lengths, two model evaluations at each of 50 steps."""
    with torch.device("meta"):
        network = AceStep(config)
    network.requires_grad_(False)
    cost, scales, takes, prompts, steps = StepFlops(network), 7, 2, 100, 50
    forward = sum(cost((1, seconds * FRAMES_PER_SECOND), TOKENS) / 2 for seconds in SWEEP_SECONDS)
    total = prompts * takes * scales * forward * 2 * steps
    return " / ".join(_hours(total / (cards * PEAKS[CARD] * SHARE) / 3600) for cards in CARDS)


def _sweep_memory(config: AceStepConfig) -> float:
    """GiB of the longest songs of ``xl_cfg_sweep``, in batches of four."""
    others = {part: 2 * count for part, count in PUBLISHED_PARAMETERS.items()}
    stages = estimate_memory(config, others, MemoryMode.full, max(SWEEP_SECONDS), torch.bfloat16, batch_size=4)
    return stages.peak(offload=False) / GIB


def _hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 1 else f"{60 * value:.0f} min"


TEXT = """# Cost of the XL experiments

Computed by the formula below, not measured. The share of its peak that a card reached is in each run's `card.md`; use
it in place of {share}.

```text
hours = samples x operations of a song / (cards x peak x share) / 3600
samples = trainer.max_steps x data.batch_size x trainer.accumulate x trainer.devices (x runs of an ablation)
operations of a song = per token and parameter 2 forward, 2 for gradients of inputs, 2 for those of trained weights;
                       attention; the forward pass again where trainer.recompute=full; {tokens} condition tokens
peak = {peak} TFLOP/s, bf16, of one {card}; share = {share}
states = 16 bytes a trained parameter (float32 weight, gradient, two moments), spread over the cards by FSDP2
store = songs x 180 s x 25 frames x 256 bytes (mean and scale, 64 channels, float16)
```

| experiment | songs | samples | TFLOP per song | hours on 1 / 8 / 64 | GiB of states per card | store, GiB |
|---|---|---|---|---|---|---|
{lines}

States are given for 1 / 8 / 64 cards; for adapters, the frozen weights and the adapter. Activations come on top:
`python -m acestep bench memory --experiment NAME` predicts them and the whole step. The same number of samples on
more cards means fewer steps of larger batches, or a smaller `trainer.accumulate`. A checkpoint of full fine-tuning
needs the states again on disk (67 GB), the result 10 GB in bfloat16; adapters need under 1.5 GB with their optimizer.
The audio can be deleted once the store is written.

`xl_cfg_sweep` with 100 prompts, 7 scales, 3 lengths and 2 takes: {sweep} on 1 / 8 / 64 cards, and {memory} GiB on each;
`torchrun --nproc-per-node 8 evaluate.py` distributes the songs.

The same experiments at micro scale, minutes on two CPU cores: `micro_lora` (`xl_lora_style`), `micro_sft`
(`xl_sft_muse`), `micro_cfg_dropout` (`xl_dropout_ablation`), `micro_repaint_ft`, `micro_cfg_sweep`.
"""
