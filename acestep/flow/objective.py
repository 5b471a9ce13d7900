"""What training minimises: the squared error of the velocity at a random time, some conditions dropped to null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    ``dropped`` says whose conditions were null, altogether (``all``) or in part, by part. All three are detached.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    per_song: Float[Tensor, " b"]
    t: Float[Tensor, " b"]
    dropped: Mapping[str, Bool[Tensor, " b"]]

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
        if not self.gamma > 0:
            raise ValueError(f"weighting.gamma={self.gamma}: need > 0")

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weights at most 1."""
        return (self.gamma * (t / (1 - t).clamp(min=1e-6)).square()).clamp(max=1)


ALL = "all"
STATES = ("text", "lyrics", "timbre")
CONTEXT = "context"


@dataclass(frozen=True)
class ConditionParts:
    """Where the parts of a batch's conditions are, so that one can be dropped without the others.

    ``rows`` has, for each of text, lyrics and timbre, the rows of the condition's states that it fills; ``context`` is
    the context that says nothing: silence, all of it to be made.
    """

    rows: Mapping[str, Bool[Tensor, "b l"]]
    context: Float[Tensor, "b t c2"]


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """Replaces a song's whole condition by the null one with probability ``rate``, so that guidance has a null to use.

    Caption, lyrics and timbre fall together, song by song; the context stays. Source: upstream ``training_losses``
    (``cfg_ratio``, 0.15). Differs from the release where a part has a rate of its own: that part alone is then dropped
    too, as ACE-Step v1 did, independently of the others and of ``rate``; its rows become the null embedding.

    Attributes:
        rate: How often text, lyrics and timbre are dropped together.
        text: How often the caption and metadata are dropped by themselves.
        lyrics: How often the lyrics are.
        timbre: How often the timbre references are.
        context: How often source audio and chunk mask become silence, all of it to be made.
    """

    rate: float = 0.15
    text: float = 0.0
    lyrics: float = 0.0
    timbre: float = 0.0
    context: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        for name in ("rate", *STATES, CONTEXT):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"objective.dropout.{name}={getattr(self, name)}: need 0 (never) to 1 (always), a probability"
                )

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that have a rate of their own."""
        return tuple(name for name in (*STATES, CONTEXT) if getattr(self, name) > 0)

    def __call__(
        self, conditions: Conditions, null: Conditions, u: Float[Tensor, " b"]
    ) -> tuple[Conditions, Bool[Tensor, " b"]]:
        """The conditions to train on, and which songs' were dropped; ``u`` are uniform numbers, one per song."""
        dropped = u < self.rate
        return conditions.where(dropped, null), dropped

    def apart(
        self, conditions: Conditions, null: Conditions, parts: ConditionParts | None, draws: Mapping[str, Tensor]
    ) -> tuple[Conditions, dict[str, Bool[Tensor, " b"]]]:
        """Conditions less the parts that fall by themselves, and whose fell; ``draws`` as ``u`` above, by part."""
        if not self.parts:
            return conditions, {}
        if parts is None:
            raise ValueError(f"objective.dropout.{self.parts[0]}: needs to be told where the conditions' parts are")
        dropped = {name: draws[name] < getattr(self, name) for name in self.parts}
        states, context = conditions.states, conditions.context
        for name, songs in dropped.items():
            if name == CONTEXT:
                context = torch.where(songs[:, None, None], parts.context.to(context), context)
            else:
                states = torch.where((songs[:, None] & parts.rows[name])[..., None], null.states, states)
        return replace(conditions, states=states, context=context), dropped


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
        positions: Sequence[int] | None = None,
        parts: ConditionParts | None = None,
    ) -> Loss:
        """The loss at random times.

        ``generator`` (one, or one per song) drives, in this order: t, dropout (of all, then of parts, where they have
        rates), noise. All are drawn in float32. Padding comes last in a song's noise, so with a generator per song no
        draw depends on the batch. ``positions`` are the songs' places in the run, for times that hang together;
        ``parts`` says where conditions' parts are, for dropping them singly.
        """
        t = self.timesteps(len(x0), generator, positions).to(x0.device)
        u = uniform(len(x0), generator).to(x0.device)
        draws = {name: uniform(len(x0), generator).to(x0.device) for name in self.dropout.parts}
        noise = normal(x0.shape, generator).to(x0.device)
        conditions, dropped = self.dropout(conditions, null, u)
        conditions, apart = self.dropout.apart(conditions, null, parts, draws)
        return replace(self.evaluate_at(velocity, x0, conditions, t, noise), dropped={ALL: dropped, **apart})

    def evaluate_at(
        self,
        velocity: VelocityField,
        x0: Float[Tensor, "b t c"],
        conditions: Conditions,
        t: Float[Tensor, " b"],
        noise: Float[Tensor, "b t c"],
    ) -> Loss:
        """The loss at given times and noise, nothing dropped: for validation on a fixed grid."""
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
            dropped={},
        )
