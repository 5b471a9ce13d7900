"""One training step has the reference's loss and gradients."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from golden import cases, condition_inputs, load_case, load_model

from acestep.flow.objective import ConditionDropout, FlowMatching
from acestep.flow.path import noised


@pytest.mark.parametrize("path", cases("train"))
def test_training_step(path: Path) -> None:
    case = load_case(path)
    network = deepcopy(load_model(case.model)).train()
    given, args = case.inputs, case.args
    x0, noise = given["hidden_states"], given["x1"]
    with torch.no_grad():
        # Upstream freezes everything but the DiT and the null embedding this way.
        conditions = network.condition(condition_inputs(given), given["silence_latent"])
    dropout = ConditionDropout(rate=args["cfg_ratio"])
    conditions, dropped = dropout(conditions, network.null(conditions), given["rand_u"])
    draws = torch.stack([given["normal_a"], given["normal_b"]])
    t = torch.sigmoid(args["timestep_mu"] + args["timestep_sigma"] * draws).amax(0)
    loss = FlowMatching(masked=False).evaluate_at(network.velocity, x0, conditions, t, noise).mean
    loss.backward()

    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    norms = {name: gradient.norm() for name, gradient in gradients.items()}
    x_t = noised(x0, noise, t)
    seen = {
        "loss": loss.detach(),
        "t": t,
        "x_t": x_t,
        "velocity": network.velocity(x_t, t, conditions).detach(),
        "encoder_hidden_states_after_drop": conditions.states.detach(),
        "context_latents": conditions.context,
        "condition_kept": ~dropped,
        "grad_norm_total": torch.stack(list(norms.values())).norm(),
    }
    seen |= {f"grad:{name}": gradient for name, gradient in gradients.items()}
    seen |= {f"grad_norm:{name}": norm for name, norm in norms.items()}
    for name in case.outputs:
        case.check(name, seen[name])
