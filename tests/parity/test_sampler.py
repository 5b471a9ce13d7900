"""Samplers follow the reference: same latents and velocities at every step, same result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Case, cases, check_noise, condition_inputs, load_case, load_model
from torch import Tensor

from acestep.flow import (
    ADG,
    APG,
    DCW,
    SDE,
    CoverStart,
    CoverSwitch,
    Custom,
    Euler,
    FlowEdit,
    Heun,
    NoCorrection,
    NoGuidance,
    NormClamp,
    Repaint,
    Retake,
    Sampler,
    SamplerTask,
    Shifted,
    Turbo,
    TurboCustom,
    VelocityEMA,
    initial_noise,
)
from acestep.flow.dcw import DCWBand
from acestep.flow.guidance import Guidance
from acestep.flow.schedule import TURBO_MAX_STEPS, Schedule
from acestep.flow.solvers import Renoise, Solver, Step
from acestep.models.acestep import AceStep
from acestep.types import Conditions

GENERATE = {
    "infer_steps": 30,
    "diffusion_guidance_scale": 7.0,
    "shift": 1.0,
    "timesteps": None,
    "infer_method": "ode",
    "sampler_mode": "euler",
    "cfg_interval_start": 0.0,
    "cfg_interval_end": 1.0,
    "use_adg": False,
    "audio_cover_strength": 1.0,
    "cover_noise_strength": 0.0,
    "retake_seed": None,
    "retake_variance": 0.0,
    "repaint_crossfade_frames": 10,
    "repaint_injection_ratio": 0.5,
    "velocity_norm_threshold": 0.0,
    "velocity_ema_factor": 0.0,
    "dcw_enabled": True,
    "dcw_mode": "double",
    "dcw_scaler": 0.05,
    "dcw_high_scaler": 0.02,
    "dcw_wavelet": "haar",
    "seed": None,
}
TURBO = GENERATE | {"infer_steps": None, "shift": 3.0}
FLOW_EDIT = {key: GENERATE[key] for key in ("shift", "timesteps", "cfg_interval_start", "cfg_interval_end", "seed")} | {
    "infer_steps": 60,
    "diffusion_guidance_scale": 15.0,
    "edit_n_min": 0.0,
    "edit_n_max": 1.0,
    "edit_n_avg": 1,
    "velocity_norm_threshold": 0.0,
    "velocity_ema_factor": 0.0,
    "retake_seed": None,
}


@dataclass
class Recorder:
    """A velocity field that records its calls, and with ``on_step`` which of them started a step."""

    network: AceStep
    calls: list[tuple[Tensor, float, Tensor]] = field(default_factory=list)
    entering: list[Tensor] = field(default_factory=list)
    main: list[int] = field(default_factory=list)

    def __call__(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        velocity = self.network.velocity(x_t, t, conditions)
        self.calls.append((x_t, t[0].item(), velocity))
        return velocity

    def on_step(self, step: Step, x: Tensor, velocity: Tensor) -> None:
        self.entering.append(x)
        self.main.append(len(self.calls) - 1)

    @property
    def correctors(self) -> list[int]:
        return [index for index in range(len(self.calls)) if index not in self.main]


@pytest.mark.parametrize("path", cases("generate") + cases("turbo"))
@torch.no_grad()
def test_generate(path: Path) -> None:
    case = load_case(path)
    turbo = path.parent.name == "turbo"
    args = arguments(case, TURBO if turbo else GENERATE)
    given, network = case.inputs, load_model(case.model)
    noise = given["noise"]
    check_noise(initial_noise(noise.shape, args["seed"]), noise)
    if "retake_noise" in given:
        other = given["retake_noise"]
        check_noise(initial_noise(noise.shape, args["retake_seed"]), other)
        noise = Retake(variance=args["retake_variance"])(noise, other)

    conditions = network.condition(condition_inputs(given), given["silence_latent"])
    case.check("encoder_hidden_states", conditions.states)
    case.check("encoder_attention_mask", conditions.mask)
    case.check("context_latents", conditions.context)
    task = task_of(case, args, network)
    sampler = turbo_sampler(args) if turbo else sampler_of(args)

    def run(task: SamplerTask) -> tuple[Tensor, Recorder]:
        recorder = Recorder(network)
        draw = iter(given["sde_noise"]).__next__ if "sde_noise" in given else None
        null = network.null(conditions)
        return sampler(recorder, noise, conditions, null, task=task, draw=draw, on_step=recorder.on_step), recorder

    latents, recorder = run(task)
    case.check("target_latents", latents)
    case.check("timesteps", torch.tensor([recorder.calls[i][1] for i in recorder.main]))
    # The recorded path ends before the blend of a repaint.
    unblended = run(replace(task, repaint=replace(task.repaint, crossfade_frames=0)))[0] if task.repaint else latents
    case.check("trajectory", torch.stack([*recorder.entering, unblended]))
    check_calls(case, "velocity", [recorder.calls[i][2] for i in recorder.main])
    check_calls(case, "velocity_corrector", [recorder.calls[i][2] for i in recorder.correctors])
    check_calls(case, "corrector_input", [recorder.calls[i][0][: len(noise)] for i in recorder.correctors])
    if not task.start:
        assert sampler.evaluations == sum(len(x) for x, _, _ in recorder.calls) / len(noise)


@pytest.mark.parametrize("path", cases("flow_edit"))
@torch.no_grad()
def test_flow_edit(path: Path) -> None:
    case = load_case(path)
    args = arguments(case, FLOW_EDIT)
    given, network = case.inputs, load_model(case.model)
    renamed = {key.removeprefix("target_"): value for key, value in given.items() if key.startswith("target_")}
    conditions = network.condition(condition_inputs(given), given["silence_latent"])
    target = network.condition(condition_inputs(given | renamed), given["silence_latent"])
    edit = FlowEdit(
        schedule=schedule_of(args, close=True),
        guidance=guidance_of(args),
        clamp=NormClamp(threshold=args["velocity_norm_threshold"]),
        smoothing=VelocityEMA(factor=args["velocity_ema_factor"]),
        n_min=args["edit_n_min"],
        n_max=args["edit_n_max"],
        draws=args["edit_n_avg"],
    )
    recorder = Recorder(network)
    draw = iter(given["forward_noise"]).__next__
    source = given["src_latents"]
    nulls = network.null(conditions), network.null(target)
    case.check("target_latents", edit(recorder, source, conditions, target, draw, *nulls))
    case.check("decoder_inputs", torch.stack([x[: len(source)] for x, _, _ in recorder.calls]))
    case.check("decoder_timesteps", torch.tensor([t for _, t, _ in recorder.calls]))
    assert edit.evaluations == sum(len(x) for x, _, _ in recorder.calls) / len(source)


def arguments(case: Case, defaults: dict[str, Any]) -> dict[str, Any]:
    """The case's arguments over the reference's defaults; an argument that no test understands fails."""
    assert case.args.keys() <= defaults.keys(), f"{case.name}: {case.args.keys() - defaults.keys()}"
    return defaults | case.args


def schedule_of(args: dict[str, Any], close: bool = False) -> Schedule:
    if args["timesteps"] is not None:
        return Custom(timesteps=args["timesteps"], close=close)
    return Shifted(steps=args["infer_steps"], shift=args["shift"])


def guidance_of(args: dict[str, Any]) -> Guidance:
    scale = max(args["diffusion_guidance_scale"], 1.0)
    interval = {"t_min": args["cfg_interval_start"], "t_max": args["cfg_interval_end"]}
    return ADG(scale=scale, **interval) if args.get("use_adg") else APG(scale=scale, **interval)


def solver_of(args: dict[str, Any], renoise: Renoise) -> Solver:
    if args["infer_method"] == "sde":
        return SDE(renoise=renoise)
    return {"euler": Euler(), "heun": Heun()}[args["sampler_mode"]]


def sampler_of(args: dict[str, Any]) -> Sampler:
    correction = DCW(
        mode=DCWBand(args["dcw_mode"]),
        scale=args["dcw_scaler"],
        high_scale=args["dcw_high_scaler"],
        wavelet=args["dcw_wavelet"],
    )
    return Sampler(
        schedule=schedule_of(args),
        solver=solver_of(args, Renoise.linear),
        guidance=guidance_of(args),
        clamp=NormClamp(threshold=args["velocity_norm_threshold"]),
        smoothing=VelocityEMA(factor=args["velocity_ema_factor"]),
        correction=correction if args["dcw_enabled"] else NoCorrection(),
    )


def turbo_sampler(args: dict[str, Any]) -> Sampler:
    schedule: Schedule = Turbo(shift=args["shift"])
    if args["timesteps"] is not None:
        schedule = TurboCustom(timesteps=args["timesteps"])
    elif args["infer_steps"] is not None:
        schedule = Shifted(steps=min(args["infer_steps"], TURBO_MAX_STEPS), shift=args["shift"])
    plain = sampler_of(args | {"infer_steps": 1, "timesteps": None})
    solver = solver_of(args, Renoise.schedule)
    return replace(plain, schedule=schedule, solver=solver, guidance=NoGuidance(), clean_last=True)


def task_of(case: Case, args: dict[str, Any], network: AceStep) -> SamplerTask:
    given = case.inputs
    start = switch = repaint = None
    if args["cover_noise_strength"] > 0:
        start = CoverStart(source=given["src_latents"], strength=args["cover_noise_strength"])
    if args["audio_cover_strength"] < 1:
        inputs = replace(
            condition_inputs(given),
            text=given["non_cover_text_hidden_states"],
            text_mask=given["non_cover_text_attention_mask"].bool(),
            source=given["silence_latent"][:, : given["src_latents"].shape[1]].expand_as(given["src_latents"]),
            is_cover=torch.zeros_like(given["is_covers"], dtype=torch.bool),
            hints=None,
        )
        other = network.condition(inputs, given["silence_latent"])
        case.check("encoder_hidden_states_non_cover", other.states)
        case.check("context_latents_non_cover", other.context)
        switch = CoverSwitch(conditions=other, null=network.null(other), strength=args["audio_cover_strength"])
    if "repaint_mask" in given:
        repaint = Repaint(
            mask=given["repaint_mask"].bool(),
            clean=given["clean_src_latents"],
            injection_ratio=args["repaint_injection_ratio"],
            crossfade_frames=args["repaint_crossfade_frames"],
        )
    return SamplerTask(start=start, switch=switch, repaint=repaint)


def check_calls(case: Case, name: str, actual: list[Tensor]) -> None:
    """Compare call by call; where we left out a null half that guidance did not need, the conditional half."""
    if name not in case.outputs:
        return
    expected = case.outputs[name]
    assert len(actual) == len(expected), f"{case.name} {name}: {len(actual)} calls"
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        text = f"{case.name} {name}[{index}]"
        torch.testing.assert_close(
            ours, theirs[: len(ours)], atol=case.atol, rtol=case.rtol, msg=lambda m, t=text: f"{t}: {m}"
        )
