"""Predicted training memory against the allocations of a real step, as torch's profiler records them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from acestep.__main__ import main
from acestep.adapters import Adapter, BaseFormat, LoRA
from acestep.cli.bench_memory import training_table
from acestep.config.run import build, compose_config
from acestep.memory import stored_bytes, tensor_bytes
from acestep.models.acestep import AceStep, AceStepConfig
from acestep.models.dit import Padding
from acestep.training.activation_checkpointing import Recompute
from acestep.training.fit import set_trainable
from acestep.training.memory_estimate import BatchShape, TrainingMemory
from acestep.training.optim import AdamW, AdamW8bit, Muon, OptimizerConfig, Prodigy
from acestep.training.trainer import TrainerConfig

BATCH = BatchShape(songs=2, frames=600, tokens=100)


def training(what: Recompute = Recompute.none, adapter: Adapter | None = None, **trainer: object) -> TrainingMemory:
    model = build(compose_config("train", ["model=micro"]).model)
    return TrainingMemory(
        model=replace(model, padding=Padding.upstream),
        trainable=r"^decoder\.",
        adapter=adapter,
        optimizer=AdamW(),
        trainer=TrainerConfig(accelerator="cpu", recompute=what, **trainer),
        batch=BATCH,
    )


def real(config: AceStepConfig) -> AceStep:
    network = AceStep(config).train()
    network.init_weights(torch.Generator().manual_seed(0))
    return network


def allocated(step: object) -> int:
    """The most bytes that ``step`` had beyond those that were there, by torch's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


LORA = LoRA(rank=8, alpha=8, dropout=0.1)
KINDS = {
    "all": training(),
    "all, recomputed": training(Recompute.full),
    "all, selective": training(Recompute.selective),
    "all, mixed, accumulated": training(precision="bf16-mixed", accumulate=2),
    "LoRA": training(adapter=LORA),
    "LoRA, bfloat16, mixed": training(Recompute.full, replace(LORA, base=BaseFormat.bfloat16), precision="bf16-mixed"),
    "LoRA, int8": training(Recompute.full, replace(LORA, base=BaseFormat.int8), precision="bf16-mixed"),
    "LoRA, nf4": training(Recompute.full, replace(LORA, base=BaseFormat.nf4), precision="bf16-mixed"),
}


QUICK = ("all, recomputed", "LoRA, int8")
LONG = (pytest.mark.slow, pytest.mark.long)


@pytest.mark.parametrize("kind", [name if name in QUICK else pytest.param(name, marks=LONG) for name in KINDS])
def test_activation_memory_of_a_real_step_matches_plan(kind: str) -> None:
    wanted = KINDS[kind]
    plan, network = wanted.plan(others=0), real(wanted.model)
    set_trainable(network, wanted.trainable, wanted.adapter, 0)
    wanted.trainer.prepare(network.decoder.layers)
    assert plan.weights == pytest.approx(stored_bytes(network), rel=0.02)
    assert plan.gradients == sum(p.nbytes for p in network.parameters() if p.requires_grad)
    measured = allocated(lambda: wanted.run_step(network))
    assert plan.gradients + plan.activations == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon(), Prodigy(), pytest.param(AdamW8bit(), marks=LONG)])
def test_optimizer_state_bytes_match(optimizer: OptimizerConfig) -> None:
    network = real(training().model)
    named = [(name, value) for name, value in network.named_parameters() if name.startswith("decoder.")]
    for _, parameter in named:
        parameter.grad = torch.ones_like(parameter)
    made = optimizer(named)
    made.step()
    held = [value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert optimizer.state_bytes(named) == pytest.approx(sum(tensor_bytes(value) for value in held), rel=0.02)


@pytest.mark.slow
@pytest.mark.long
def test_memory_plans_of_sharding_and_recomputation() -> None:
    plans = {what: training(what).plan(others=0) for what in Recompute}
    assert plans[Recompute.full].saved < plans[Recompute.selective].saved < plans[Recompute.none].saved
    alone = plans[Recompute.none]
    shared = training(strategy="fsdp2", devices="2").plan(others=0)
    assert shared.optimizer == alone.optimizer // 2
    assert shared.gradients == alone.gradients // 2
    assert shared.weights > alone.weights // 2, "some layers are whole"
    head, names, *rows = training_table("micro_lora")
    assert "8 x 4500 frames, 32-true" in head
    assert names.split()[-2:] == ["total", "card"]
    assert [row.split()[0] for row in rows] == [what.value for what in Recompute]
    assert rows[0].split()[1] == "*"
    assert all(int(row.split()[-1]) >= 12 for row in rows)


def test_memory_of_other_tasks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for experiment, message in (
        ("micro_planner", "trainings of the DiT only"),
        ("micro_cfg_sweep", "not in configs/exp"),
    ):
        assert main(["bench", "memory", "--experiment", experiment]) == 1
        assert message in capsys.readouterr().err
