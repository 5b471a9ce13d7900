"""Guidance rules, wavelet correction, noise seeding, repaint functions and timesteps, one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import cases, check_noise, load_case

from acestep.flow import ADG, APG, CFG, DCW, LogitNormalMax, Repaint, initial_noise
from acestep.flow.dcw import DCWBand
from acestep.flow.guidance import Guidance, NormAxis, Predictions
from acestep.flow.wavelets import low_band

AXES = {1: NormAxis.time, -1: NormAxis.channels, 2: NormAxis.channels}


def rule(name: str, args: dict[str, Any]) -> Guidance:
    """Our guidance for an upstream function and its arguments (both have the same defaults)."""
    scale = args["guidance_scale"]
    if name == "cfg_forward":
        return CFG(scale=scale)
    if name == "apg_forward":
        return APG(
            scale=scale,
            momentum=args.get("momentum") or 0.0,
            norm_threshold=args.get("norm_threshold", 2.5),
            eta=args.get("eta", 0.0),
            axis=AXES[args["dims"][0]],
        )
    return {
        "adg_forward": ADG(scale=scale),
        "adg_w_norm_forward": ADG(scale=scale, max_angle=3.14 / 3, restore_norm=True),
        "adg_wo_clip_forward": ADG(scale=scale, max_angle=math.inf),
    }[name]


@pytest.mark.parametrize("path", cases("guidance"))
def test_guidance(path: Path) -> None:
    case = load_case(path)
    upstream = json.loads(path.read_text())["upstream"]
    given = case.inputs
    guidance = rule(upstream.rpartition(".")[2], case.args)
    momentum, velocities, averages = None, [], []
    for call, conditional in enumerate(given["pred_cond"]):
        x_t = given["latents"][call] if "latents" in given else conditional
        t = case.args["sigmas"][call] if "sigmas" in case.args else 1.0
        valid = torch.ones(conditional.shape[:2], dtype=torch.bool)
        velocity, momentum = guidance(Predictions(conditional, given["pred_uncond"][call], x_t, t, valid), momentum)
        velocities.append(velocity)
        averages.append(momentum)
    case.check("guided", torch.stack(velocities))
    if "momentum_running_average" in case.outputs:
        case.check("momentum_running_average", torch.stack(averages))


@pytest.mark.parametrize("path", cases("dcw"))
def test_dcw(path: Path) -> None:
    case = load_case(path)
    for row in case.args["table"]:
        x, clean = case.inputs[f"x.T{row['length']}"], case.inputs[f"y.T{row['length']}"]
        correction = DCW(
            mode=DCWBand(row["mode"]),
            scale=case.args["scaler"],
            high_scale=case.args["high_scaler"],
            wavelet=row["wavelet"],
        )
        case.check(row["output"], correction(x, clean, row["t"], torch.ones(x.shape[:2], dtype=torch.bool)))
        low = case.outputs[f"dwt_low.T{row['length']}.{row['wavelet']}"]
        energy = low_band(x, row["wavelet"]).mul(x).sum(1)  # the projection's norm, by the coefficients it keeps
        torch.testing.assert_close(energy, low.square().sum(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", cases("noise"))
def test_noise(path: Path) -> None:
    case = load_case(path)
    shape = (case.args["B"], case.args["T"], case.outputs["noise"].shape[-1])
    check_noise(initial_noise(shape, case.args["seed"]), case.outputs["noise"])


@pytest.mark.parametrize("path", cases("repaint"))
def test_repaint(path: Path) -> None:
    case = load_case(path)
    given = case.inputs
    for row in case.args["table"]:
        mask = given[f"mask.{row['index']}"]
        repaint = Repaint(mask=mask, clean=given["clean_src"])
        case.check(f"injected.{row['index']}", repaint.inject(given["x"], given["noise"], row["t_next"]))
        for frames in row["crossfade_frames"]:
            repaint = Repaint(mask=mask, clean=given["clean_src"], crossfade_frames=frames)
            case.check(f"blended.{row['index']}.cf{frames}", repaint.blend(given["x"]))


@pytest.mark.parametrize("path", cases("timesteps"))
def test_timesteps(path: Path) -> None:
    """Without mean flow, which is off in every release, r is t; t is the maximum either way."""
    case = load_case(path)
    distribution = LogitNormalMax(mu=case.args["timestep_mu"], sigma=case.args["timestep_sigma"])
    larger = torch.maximum(case.inputs["normal_a"], case.inputs["normal_b"]).double()
    t = distribution.quantile(torch.special.ndtr(larger).square()).float()
    for name in ("t_meanflow_false", "r_meanflow_false", "t_meanflow_true"):
        case.check(name, t)
