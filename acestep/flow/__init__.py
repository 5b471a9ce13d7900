"""The flow between noise and data: path, times, objective, and the sampler with its exchangeable parts."""

from acestep.flow.corrections import NormClamp, VelocityEMA
from acestep.flow.dcw import DCW, Band, NoCorrection
from acestep.flow.flow_edit import FlowEdit
from acestep.flow.guidance import ADG, APG, CFG, NoGuidance
from acestep.flow.noise import Retake, SongNoise, initial_noise
from acestep.flow.objective import CleanError, ConditionDropout, ConditionParts, Flat, FlowMatching, Loss, MinSNR
from acestep.flow.sampler import Sampler
from acestep.flow.schedule import Custom, Linear, Shifted, Turbo, TurboCustom
from acestep.flow.solvers import SDE, Euler, Heun
from acestep.flow.tasks import CoverStart, CoverSwitch, Repaint, Task
from acestep.flow.timesteps import Discrete, LogitNormal, LogitNormalMax, Stratified, Uniform, Warped

__all__ = [
    "ADG",
    "APG",
    "CFG",
    "DCW",
    "SDE",
    "Band",
    "CleanError",
    "ConditionDropout",
    "ConditionParts",
    "CoverStart",
    "CoverSwitch",
    "Custom",
    "Discrete",
    "Euler",
    "Flat",
    "FlowEdit",
    "FlowMatching",
    "Heun",
    "Linear",
    "LogitNormal",
    "LogitNormalMax",
    "Loss",
    "MinSNR",
    "NoCorrection",
    "NoGuidance",
    "NormClamp",
    "Repaint",
    "Retake",
    "Sampler",
    "Shifted",
    "SongNoise",
    "Stratified",
    "Task",
    "Turbo",
    "TurboCustom",
    "Uniform",
    "VelocityEMA",
    "Warped",
    "initial_noise",
]
