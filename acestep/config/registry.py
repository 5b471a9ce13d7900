"""Every configurable class, by group and name: one line each. They are imported when a config asks for them."""

from __future__ import annotations

from importlib import import_module

from omegaconf import OmegaConf

from acestep.config.schema import store

SCHEMAS = {
    "model": {"acestep": "acestep.models.acestep.AceStepConfig"},
    "adapter": {
        "lora": "acestep.adapters.LoRA",
        "lokr": "acestep.adapters.LoKr",
        "loha": "acestep.adapters.LoHa",
        "oft": "acestep.adapters.OFT",
    },
    "timesteps": {
        "logit_normal": "acestep.flow.LogitNormal",
        "logit_normal_max": "acestep.flow.LogitNormalMax",
        "uniform": "acestep.flow.Uniform",
        "discrete": "acestep.flow.Discrete",
        "warped": "acestep.flow.Warped",
        "stratified": "acestep.flow.Stratified",
    },
    "weighting": {
        "flat": "acestep.flow.Flat",
        "clean_error": "acestep.flow.CleanError",
        "min_snr": "acestep.flow.MinSNR",
    },
    "objective": {"flow_matching": "acestep.flow.FlowMatching"},
    "data": {
        "latents": "acestep.training.datamodule.DataConfig",
        "audio": "acestep.training.audio_datamodule.AudioConfig",
    },
    "task": {
        "dit": "acestep.training.tasks.DiTTask",
        "tokenizer": "acestep.training.tasks.TokenizerTask",
        "planner": "acestep.training.tasks.PlannerTask",
        "autoencoder": "acestep.training.tasks.AutoencoderTask",
    },
    "language": {"pretrained": "acestep.planner.begin.Pretrained", "scratch": "acestep.planner.begin.Scratch"},
    "planner": {"planner": "acestep.cli.plan_songs.Planning"},
    "optimizer": {
        "adamw": "acestep.training.optim.AdamW",
        "adamw_8bit": "acestep.training.optim.AdamW8bit",
        "prodigy": "acestep.training.optim.Prodigy",
        "muon": "acestep.training.optim.Muon",
    },
    "trainer": {"trainer": "acestep.training.trainer.TrainerConfig"},
    "lr": {
        "cosine": "acestep.training.lr_schedules.WarmupCosine",
        "constant": "acestep.training.lr_schedules.WarmupConstant",
        "linear": "acestep.training.lr_schedules.WarmupLinear",
        "stable_decay": "acestep.training.lr_schedules.WarmupStableDecay",
        "inverse_root": "acestep.training.lr_schedules.WarmupInverseRoot",
    },
    "schedule": {
        "linear": "acestep.flow.Linear",
        "shifted": "acestep.flow.Shifted",
        "custom": "acestep.flow.Custom",
        "turbo": "acestep.flow.Turbo",
        "turbo_custom": "acestep.flow.TurboCustom",
    },
    "solver": {"euler": "acestep.flow.Euler", "heun": "acestep.flow.Heun", "sde": "acestep.flow.SDE"},
    "guidance": {
        "none": "acestep.flow.NoGuidance",
        "cfg": "acestep.flow.CFG",
        "apg": "acestep.flow.APG",
        "adg": "acestep.flow.ADG",
    },
    "correction": {"none": "acestep.flow.NoCorrection", "dcw": "acestep.flow.DCW"},
    "clamp": {"norm": "acestep.flow.NormClamp"},
    "smoothing": {"ema": "acestep.flow.VelocityEMA"},
    "song": {"song": "acestep.songs.song.Request"},
    "eval": {
        "evaluation": "acestep.evaluation.suite.Evaluation",
        "reconstruction_study": "acestep.evaluation.reconstruction_study.ReconstructionStudy",
        "planner_study": "acestep.evaluation.planner_study.PlannerStudy",
    },
}


def register() -> None:
    """Put every schema where the YAML files of its group find it, as ``NAME_schema``, and name ``${identity:}``."""
    for group, classes in SCHEMAS.items():
        for name, dotted in classes.items():
            store(group, f"{name}_schema", dotted)
    store("", "train_schema", "acestep.config.top_level.TrainKeys", is_target=False)
    folder = "acestep.config.run_dir"
    OmegaConf.register_new_resolver("identity", lambda *, _root_: import_module(folder).identity(_root_), replace=True)
