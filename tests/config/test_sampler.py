"""Samplers from the command line: the checkpoint's, a preset, and each part and field replaced."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from acestep.config.run import compose_config
from acestep.config.sampler import override_sampler, to_config
from acestep.flow import (
    APG,
    DCW,
    SDE,
    DCWBand,
    Linear,
    NoCorrection,
    NoGuidance,
    NormClamp,
    Sampler,
    Shifted,
    TurboCustom,
    VelocityEMA,
)
from acestep.flow.guidance import NormAxis

CHECKPOINT = Sampler(schedule=Shifted(steps=8), guidance=APG(scale=3.0), correction=DCW(mode=DCWBand.low))


def settings(*overrides: str, main: str = "infer") -> dict[str, Any]:
    needed = ["out=out"] if main == "evaluate" else []
    cfg = compose_config(main, [*needed, *overrides])
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)


@pytest.mark.parametrize("main", ["infer", "evaluate"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], CHECKPOINT),
        (["sampler=sft"], Sampler()),
        (["sampler=upstream"], Sampler(schedule=Linear(steps=30), correction=DCW())),
        (["sampler=turbo"], Sampler.turbo()),
        (["sampler=sft", "correction=dcw", "correction.mode=high"], Sampler(correction=DCW(mode=DCWBand.high))),
        (["sampler=upstream", "correction=none", "schedule.steps=50"], Sampler()),
        (["sampler=sft", "guidance=none", "solver=sde"], Sampler(guidance=NoGuidance(), solver=SDE())),
        (["sampler=sft", "guidance.axis=channels"], Sampler(guidance=APG(axis=NormAxis.channels))),
        (
            ["sampler=turbo", "schedule=turbo_custom", "schedule.timesteps=[1,0.6]", "clean_last=false"],
            Sampler(schedule=TurboCustom(timesteps=(1.0, 0.6)), guidance=NoGuidance(), correction=DCW()),
        ),
        (
            ["sampler=sft", "clamp.threshold=2", "smoothing.factor=0.1"],
            Sampler(clamp=NormClamp(threshold=2.0), smoothing=VelocityEMA(factor=0.1)),
        ),
    ],
    ids=lambda value: " ".join(value) or "checkpoint" if isinstance(value, list) else None,
)
def test_the_command_line_chooses_the_sampler(main: str, overrides: list[str], expected: Sampler) -> None:
    built = override_sampler(settings(*overrides, main=main), CHECKPOINT)
    assert built == expected
    # What a sidecar holds gives the same sampler back, whatever checkpoint it meets.
    assert override_sampler({part: to_config(getattr(built, part)) for part in vars(built)}, Sampler()) == built


def test_fields_replace_those_of_the_checkpoints_parts() -> None:
    changed = override_sampler(
        settings("guidance.t_min=0.2", "correction.scale=0.1", "clamp.threshold=2", "clean_last=true"), CHECKPOINT
    )
    assert changed.guidance == APG(scale=3.0, t_min=0.2)
    assert changed.correction == DCW(mode=DCWBand.low, scale=0.1)
    assert (changed.clamp, changed.clean_last, changed.schedule) == (
        NormClamp(threshold=2.0),
        True,
        CHECKPOINT.schedule,
    )
    assert override_sampler(settings("correction=none"), CHECKPOINT).correction == NoCorrection()


@pytest.mark.parametrize(
    ("override", "sampler", "message"),
    [
        (
            "correction.scale=0.1",
            Sampler(),
            "the checkpoint's correction is NoCorrection, which has no scale; choose another",
        ),
        ("guidance.scale=4", Sampler.turbo(), "the checkpoint's guidance is NoGuidance, which has no scale"),
        ("clean_last=perhaps", CHECKPOINT, "clean_last=perhaps: need true or false"),
        ("clamp.threshold=-1", CHECKPOINT, "clamp.threshold=-1: need >= 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(override: str, sampler: Sampler, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        override_sampler(settings(override), sampler)
