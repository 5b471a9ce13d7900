"""The flow between noise and data: path, schedules, training objective, and the sampler with its exchangeable parts."""

from acestep.flow.corrections import NormClamp, VelocityEMA
from acestep.flow.dcw import DCW, DCWBand, NoCorrection
from acestep.flow.flow_edit import FlowEdit
from acestep.flow.guidance import ADG, APG, CFG, Guidance, NoGuidance, Predictions
from acestep.flow.noise import Retake, SongNoise, initial_noise
from acestep.flow.objective import CleanError, ConditionDropout, ConditionParts, Flat, FlowMatching, Loss, MinSNR
from acestep.flow.sampler import Sampler
from acestep.flow.schedule import Custom, Linear, Shifted, Turbo, TurboCustom
from acestep.flow.solvers import SDE, Euler, Heun, Solver, StepResult
from acestep.flow.tasks import CoverStart, CoverSwitch, Repaint, SamplerTask
from acestep.flow.timesteps import Discrete, LogitNormal, LogitNormalMax, Stratified, Uniform, Warped

__all__ = [
    "ADG",
    "APG",
    "CFG",
    "DCW",
    "SDE",
    "CleanError",
    "ConditionDropout",
    "ConditionParts",
    "CoverStart",
    "CoverSwitch",
    "Custom",
    "DCWBand",
    "Discrete",
    "Euler",
    "Flat",
    "FlowEdit",
    "FlowMatching",
    "Guidance",
    "Heun",
    "Linear",
    "LogitNormal",
    "LogitNormalMax",
    "Loss",
    "MinSNR",
    "NoCorrection",
    "NoGuidance",
    "NormClamp",
    "Predictions",
    "Repaint",
    "Retake",
    "Sampler",
    "SamplerTask",
    "Shifted",
    "Solver",
    "SongNoise",
    "StepResult",
    "Stratified",
    "Turbo",
    "TurboCustom",
    "Uniform",
    "VelocityEMA",
    "Warped",
    "initial_noise",
]
