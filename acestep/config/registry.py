"""Every configurable class, by group and name: one line each."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from acestep import flow
from acestep.adapters import LoRA
from acestep.config.folder import identity
from acestep.config.mains import TrainKeys
from acestep.config.schema import store
from acestep.evaluation.suite import Evaluation
from acestep.models.acestep import AceStepConfig
from acestep.training.data import DataConfig
from acestep.training.optim import AdamW, WarmupConstant, WarmupCosine
from acestep.training.trainer import TrainerConfig
from acestep.types import Song

SCHEMAS = {
    "model": {"acestep": AceStepConfig},
    "adapter": {"lora": LoRA},
    "timesteps": {
        "logit_normal": flow.LogitNormal,
        "logit_normal_max": flow.LogitNormalMax,
        "uniform": flow.Uniform,
        "discrete": flow.Discrete,
        "warped": flow.Warped,
        "stratified": flow.Stratified,
    },
    "weighting": {"flat": flow.Flat, "clean_error": flow.CleanError, "min_snr": flow.MinSNR},
    "objective": {"flow_matching": flow.FlowMatching},
    "data": {"latents": DataConfig},
    "optimizer": {"adamw": AdamW},
    "trainer": {"trainer": TrainerConfig},
    "lr": {"cosine": WarmupCosine, "constant": WarmupConstant},
    "schedule": {
        "linear": flow.Linear,
        "shifted": flow.Shifted,
        "custom": flow.Custom,
        "turbo": flow.Turbo,
        "turbo_custom": flow.TurboCustom,
    },
    "solver": {"euler": flow.Euler, "heun": flow.Heun, "sde": flow.SDE},
    "guidance": {"none": flow.NoGuidance, "cfg": flow.CFG, "apg": flow.APG, "adg": flow.ADG},
    "correction": {"none": flow.NoCorrection, "dcw": flow.DCW},
    "clamp": {"norm": flow.NormClamp},
    "smoothing": {"ema": flow.VelocityEMA},
    "song": {"song": Song},
    "eval": {"evaluation": Evaluation},
}


def register() -> None:
    """Put every schema where the YAML files of its group find it, as ``NAME_schema``, and name ``${identity:}``."""
    for group, classes in SCHEMAS.items():
        for name, cls in classes.items():
            store(group, f"{name}_schema", cls)
    OmegaConf.register_new_resolver("identity", lambda *, _root_: identity(_root_), replace=True)
    ConfigStore.instance().store(name="train_schema", node=TrainKeys, provider="acestep")
