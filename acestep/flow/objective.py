"""The flow matching loss: squared error of the velocity at random times, with condition dropout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from acestep.flow.noise import Generators, normal, uniform
from acestep.flow.path import Latents, noised, velocity_target
from acestep.flow.timesteps import LogitNormalMax, Timesteps
from acestep.types import Conditions, VelocityField


@dataclass(frozen=True)
class Loss:
    """A batch's loss as sums that add up over ranks and accumulated batches.

    ``total`` is the weighted sum of squared errors and ``count`` the number of values in it: divide the summed totals
    by the summed counts. ``per_song`` is each song's unweighted mean at its time ``t``, for losses by noise level;
    ``dropped`` is which songs' conditions were null, the whole (``all``) or by part. These three are detached.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    per_song: Float[Tensor, " b"]
    t: Float[Tensor, " b"]
    dropped: Mapping[str, Bool[Tensor, " b"]]

    @property
    def mean(self) -> Float[Tensor, ""]:
        """The loss of this batch."""
        return self.total / self.count


class Weighting(ABC):
    """Loss weight by time. To add one, subclass and implement ``__call__``."""

    @abstractmethod
    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """The weight of each song's squared error at its time."""


@dataclass(frozen=True, kw_only=True)
class Flat(Weighting):
    """Weight 1 at every time: the release's loss."""

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class CleanError(Weighting):
    """``t**2``, which gives the squared error of the clean estimate (ACE-Step v1's preconditioned loss)."""

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return t.square()


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weighting):
    """``min(snr, gamma) / snr`` with ``snr = ((1 - t) / t)**2``: less weight near the data (Hang et al. 2023).

    Args:
        gamma: largest signal-to-noise ratio in the weight.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"weighting.gamma={self.gamma}: need > 0")

    def __call__(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (self.gamma * (t / (1 - t).clamp(min=1e-6)).square()).clamp(max=1)


ALL = "all"
STATES = ("text", "lyrics", "timbre")
CONTEXT = "context"


@dataclass(frozen=True)
class ConditionParts:
    """Positions of the parts in a batch's conditions, so that each can be dropped separately.

    ``rows`` is, for each of text, lyrics and timbre, a mask of its rows in the condition states; ``context`` is the
    null context: silence, with every frame to generate.
    """

    rows: Mapping[str, Bool[Tensor, "b l"]]
    context: Float[Tensor, "b t c2"]


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """Condition dropout for classifier-free guidance: a song's condition becomes null with probability ``rate``.

    Caption, lyrics and timbre are dropped together, song by song; the context stays. Source: upstream
    ``training_losses`` (``cfg_ratio``, 0.15). Differs from the release where a part has a rate of its own: that part
    is then also dropped separately, as in ACE-Step v1, independently of the others and of ``rate``; its rows become
    the null embedding.

    Attributes:
        rate: probability to drop text, lyrics and timbre together.
        text: probability to drop the caption and metadata separately.
        lyrics: probability to drop the lyrics separately.
        timbre: probability to drop the timbre references separately.
        context: probability to replace source audio and chunk mask by silence, with every frame to generate.
    """

    rate: float = 0.15
    text: float = 0.0
    lyrics: float = 0.0
    timbre: float = 0.0
    context: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rate", *STATES, CONTEXT):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"objective.dropout.{name}={getattr(self, name)}: need 0 (never) to 1 (always), a probability"
                )

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts with a rate of their own."""
        return tuple(name for name in (*STATES, CONTEXT) if getattr(self, name) > 0)

    def __call__(
        self, conditions: Conditions, null: Conditions, u: Float[Tensor, " b"]
    ) -> tuple[Conditions, Bool[Tensor, " b"]]:
        """The conditions to train on, and which songs were dropped; ``u`` are uniform numbers, one per song."""
        dropped = u < self.rate
        return conditions.where(dropped, null), dropped

    def drop_parts(
        self, conditions: Conditions, null: Conditions, parts: ConditionParts | None, draws: Mapping[str, Tensor]
    ) -> tuple[Conditions, dict[str, Bool[Tensor, " b"]]]:
        """Drop the parts with rates of their own; returns the conditions and, by part, which songs were dropped.

        ``draws`` are uniform numbers, one per song, by part.
        """
        if not self.parts:
            return conditions, {}
        if parts is None:
            raise ValueError(f"objective.dropout.{self.parts[0]}: needs the positions of the parts; pass parts")
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

    Source: upstream ``training_losses``. ``masked=False`` averages over padding too, as upstream does; the default
    ``masked=True`` differs: padding is ignored, and each valid value has the same weight whatever its batch, rank or
    accumulation.

    Attributes:
        timesteps: distribution of t.
        dropout: condition dropout.
        weighting: loss weight by time.
        masked: whether padding is ignored.
    """

    timesteps: Timesteps = field(default_factory=LogitNormalMax)
    dropout: ConditionDropout = field(default_factory=ConditionDropout)
    weighting: Weighting = field(default_factory=Flat)
    masked: bool = True

    def __call__(
        self,
        velocity: VelocityField,
        x0: Latents,
        conditions: Conditions,
        null: Conditions,
        generator: Generators,
        sample_indices: Sequence[int] | None = None,
        parts: ConditionParts | None = None,
    ) -> Loss:
        """The loss at random times.

        ``generator`` (one, or one per song) draws, in this order: t, dropout (of all, then of parts with rates),
        noise. All are drawn in float32. Padding comes last in a song's noise, so with a generator per song no draw
        depends on the batch. ``sample_indices``: see ``Timesteps``. ``parts`` are the positions of the conditions'
        parts, needed to drop them separately.
        """
        t = self.timesteps(len(x0), generator, sample_indices).to(x0.device)
        u = uniform(len(x0), generator).to(x0.device)
        draws = {name: uniform(len(x0), generator).to(x0.device) for name in self.dropout.parts}
        noise = normal(x0.shape, generator).to(x0.device)
        conditions, dropped = self.dropout(conditions, null, u)
        conditions, parts_dropped = self.dropout.drop_parts(conditions, null, parts, draws)
        return replace(self.evaluate_at(velocity, x0, conditions, t, noise), dropped={ALL: dropped, **parts_dropped})

    def evaluate_at(
        self, velocity: VelocityField, x0: Latents, conditions: Conditions, t: Float[Tensor, " b"], noise: Latents
    ) -> Loss:
        """The loss at given times and noise, without dropout: for validation on a fixed grid."""
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
