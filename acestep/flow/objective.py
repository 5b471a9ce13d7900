"""What training minimises: the squared error of the velocity at a random time, some conditions dropped to null."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.flow.noise import Generators, normal, uniform
from acestep.flow.path import noised, velocity_target
from acestep.flow.timesteps import LogitNormalMax, Timesteps
from acestep.types import Conditions, VelocityField


@dataclass(frozen=True)
class Loss:
    """A batch's loss in parts that add up over ranks and accumulated batches.

    ``total`` is the weighted sum of squared errors and ``count`` the number of values in it: divide the summed totals
    by the summed counts. ``per_song`` is each song's unweighted mean at its time ``t``, for losses by noise level;
    ``dropped`` says whose conditions were null. Both are detached.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    per_song: Float[Tensor, " b"]
    t: Float[Tensor, " b"]
    dropped: Bool[Tensor, " b"]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The loss of this batch alone."""
        return self.total / self.count


class Weighting(Protocol):
    """The weight of a song's squared error at its time."""

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """One weight per song."""
        ...


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Every time counts alike: the original's loss."""

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Ones."""
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class CleanError:
    """``t**2``, which makes it the squared error of the clean estimate (ACE-Step v1's preconditioned loss)."""

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weights from 0 at the data to 1 at the noise."""
        return t.square()


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    """``min(snr, gamma) / snr`` with ``snr = ((1 - t) / t)**2``: less weight near the data (Hang et al. 2023)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a cap that removes everything."""
        if self.gamma <= 0:
            raise ValueError(f"weighting.gamma={self.gamma}: need > 0")

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weights at most 1."""
        return (self.gamma * (t / (1 - t).clamp(min=1e-6)).square()).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """Replaces a song's whole condition by the null one with probability ``rate``, so that guidance has a null to use.

    Caption, lyrics and timbre fall together, song by song; the context stays. Source: upstream ``training_losses``
    (``cfg_ratio``, 0.15).
    """

    rate: float = 0.15

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 <= self.rate <= 1:
            raise ValueError(f"objective.dropout.rate={self.rate}: need 0 (never) to 1 (always)")

    def __call__(
        self, conditions: Conditions, null: Conditions, u: Float[Tensor, " b"]
    ) -> tuple[Conditions, Bool[Tensor, " b"]]:
        """The conditions to train on, and which songs' were dropped; ``u`` are uniform numbers, one per song."""
        dropped = u < self.rate
        return conditions.where(dropped, null), dropped


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """Mean squared error of the velocity over valid frames.

    Source: upstream ``training_losses``. ``masked=False`` averages over padding too, as the original does;
    ``masked=True``, the default here, is a departure: padding teaches nothing, and each valid value counts alike in
    whatever batch, rank or accumulation it comes.

    Attributes:
        timesteps: The distribution of t.
        dropout: How often conditions become null.
        weighting: The weight of each time.
        masked: Whether padding is left out.
    """

    timesteps: Timesteps = field(default_factory=LogitNormalMax)
    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    weighting: Weighting = field(default_factory=Flat)
    masked: bool = True

    def __call__(
        self,
        velocity: VelocityField,
        x0: Float[Tensor, "b t c"],
        conditions: Conditions,
        null: Conditions,
        generator: Generators,
    ) -> Loss:
        """The loss at random times.

        ``generator`` (one, or one per song) drives, in this order: t, dropout, noise. All are drawn in float32. Padding
        comes last in a song's noise, so with a generator per song no draw depends on the batch.
        """
        t = self.timesteps(len(x0), generator).to(x0.device)
        u = uniform(len(x0), generator).to(x0.device)
        noise = normal(x0.shape, generator).to(x0.device)
        conditions, dropped = self.dropout(conditions, null, u)
        return self._loss(velocity, x0, conditions, t, noise, dropped)

    def evaluate_at(
        self,
        velocity: VelocityField,
        x0: Float[Tensor, "b t c"],
        conditions: Conditions,
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b t c"],
    ) -> Loss:
        """The loss at given times and noise, nothing dropped: for validation on a fixed grid."""
        return self._loss(velocity, x0, conditions, t, noise, torch.zeros_like(t, dtype=torch.bool))

    def _loss(
        self, velocity: VelocityField, x0: Tensor, conditions: Conditions, t: Tensor, noise: Tensor, dropped: Tensor
    ) -> Loss:
        x0, noise = x0.float(), noise.float()
        predicted = velocity(noised(x0, noise, t), t, conditions).float()
        error = (predicted - velocity_target(x0, noise)).square()
        mask = conditions.frame_mask if self.masked else torch.ones_like(conditions.frame_mask)
        frames = mask.sum(dim=1)  # (B,)
        sums = (error * mask[..., None]).sum(dim=(1, 2))  # (B,)
        return Loss(
            total=(self.weighting(t) * sums).sum(),
            count=frames.sum().to(sums) * x0.shape[-1],
            per_song=sums.detach() / (frames.clamp(min=1) * x0.shape[-1]),
            t=t,
            dropped=dropped,
        )
