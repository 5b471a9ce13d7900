"""Distributions of the training timestep t in (0, 1), 1 = noise, in float32: bfloat16 has steps of 1/256 there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from acestep.flow.noise import Generators, uniform
from acestep.flow.schedule import shifted


class Timesteps(ABC):
    """A distribution over t. To add a distribution, subclass and implement ``quantile``."""

    @abstractmethod
    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The inverse cumulative distribution function at ``u`` in [0, 1), computed in float64."""

    def __call__(
        self, n: int, generator: Generators, sample_indices: Sequence[int] | None = None
    ) -> Float[Tensor, " n"]:
        """``n`` draws in float32, on the generator's device; by default independent, from uniform numbers.

        ``sample_indices`` are the songs' global indices in the run, over all batches and ranks; only ``Stratified``
        uses them.
        """
        return self.quantile(uniform(n, generator)).float()


@dataclass(frozen=True, kw_only=True)
class LogitNormal(Timesteps):
    """``sigmoid(N(mu, sigma))``.

    Source: Esser et al. 2024, section 3.1. The published config's ``timestep_mu``, ``timestep_sigma``.

    Args:
        mu: mean of the normal distribution; above 0 favours noise.
        sigma: its standard deviation.
    """

    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"timesteps.sigma={self.sigma}: need > 0")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        # A float32 uniform can be exactly 0; half its spacing keeps the normal quantile finite.
        u = u.double().clamp(2.0**-25, 1 - 2.0**-25)
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class LogitNormalMax(LogitNormal):
    """The larger of two logit-normal draws, which favours high noise: as in upstream's fine-tuning.

    Source: upstream ``sample_t_r``: two draws, t the larger, r the smaller; without mean flow r is then set to t,
    but t stays the maximum. The distribution function of the maximum is the square of the single draw's.
    """

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return super().quantile(u.double().sqrt())


@dataclass(frozen=True, kw_only=True)
class Uniform(Timesteps):
    """Uniform between ``low`` and ``high``.

    Args:
        low: smallest time.
        high: largest time, 1 being noise.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"timesteps.low={self.low}, timesteps.high={self.high}: need 0 <= low < high <= 1")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return self.low + (self.high - self.low) * u.double()


@dataclass(frozen=True, kw_only=True)
class Discrete(Timesteps):
    """Uniform over a few values, as for distilled models (upstream's legacy trainer: turbo's eight).

    The default is the 8-step schedule of shift 3.

    Args:
        values: the times, each with the same probability.
    """

    values: tuple[float, ...] = tuple(shifted(1 - i / 8, 3.0) for i in range(8))

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or not all(0 < t <= 1 for t in self.values):
            raise ValueError(f"timesteps.values={list(self.values)}: need at least one, each above 0 and at most 1")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        values = torch.tensor(sorted(self.values), dtype=torch.float64, device=u.device)
        return values[(u.double() * len(values)).long().clamp(max=len(values) - 1)]


@dataclass(frozen=True, kw_only=True)
class Warped(Timesteps):
    """Another distribution with t shifted towards noise (``shift`` > 1) or data, as in a shifted schedule.

    Args:
        base: the distribution that is shifted.
        shift: above 1 towards noise, below 1 towards data; 1 changes nothing.
    """

    base: Timesteps = Uniform()
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"timesteps.shift={self.shift}: need > 0 (1 changes nothing)")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return shifted(self.base.quantile(u), self.shift)


@dataclass(frozen=True, kw_only=True)
class Stratified(Timesteps):
    """Stratified sampling of another distribution: losses of less variance and the same mean.

    Every ``strata`` consecutive songs of a run have one draw from each stratum, however the run is divided into
    batches, accumulation and ranks. A single batch without sample indices has as many strata as songs.

    Attributes:
        base: the distribution.
        strata: number of parts of equal probability; the songs of one optimiser step, over all ranks.
    """

    base: Timesteps = LogitNormalMax()
    strata: int = 16

    def __post_init__(self) -> None:
        if self.strata < 1:
            raise ValueError(f"timesteps.strata={self.strata}: need at least 1 (1 changes nothing)")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The base's: draws are dependent, but have the same distribution."""
        return self.base.quantile(u)

    def __call__(
        self, n: int, generator: Generators, sample_indices: Sequence[int] | None = None
    ) -> Float[Tensor, " n"]:
        """``n`` draws in float32, on the generator's device.

        Raises:
            ValueError: neither sample indices nor one generator for the batch.
        """
        if sample_indices is not None:
            strata, parts = torch.tensor([self._stratum(index) for index in sample_indices]), self.strata
        elif isinstance(generator, Generator):
            strata, parts = torch.randperm(n, generator=generator, device=generator.device), n
        else:
            raise ValueError("timesteps=stratified: needs one generator for the batch, or sample_indices")
        within = uniform(n, generator)
        return self.quantile((strata.to(within.device) + within.double()) / parts).float()

    def _stratum(self, index: int) -> int:
        block, place = divmod(index, self.strata)
        return int(torch.randperm(self.strata, generator=Generator().manual_seed(block))[place])


def validation_grid(n: int) -> Float[Tensor, " n"]:
    """``n`` fixed times, the middles of equal bins of [0, 1]: for losses that are comparable between steps."""
    if n < 1:
        raise ValueError(f"validation_times={n}: need at least 1")
    return (torch.arange(n) + 0.5) / n
