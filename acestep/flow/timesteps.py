"""How training draws t in (0, 1), 1 = noise. In float32 whatever the network's type: bf16 has steps of 1/256 there.

Each distribution is its inverse cumulative distribution function, ``quantile``; drawing feeds it uniform numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from acestep.flow.noise import Generators, uniform
from acestep.flow.schedule import shifted


class Timesteps(Protocol):
    """A distribution over t."""

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies; computed in float64."""
        ...

    def __call__(self, n: int, generator: Generators, positions: Sequence[int] | None = None) -> Float[Tensor, " n"]:
        """``n`` draws in float32, on the generator's device.

        ``positions`` are the songs' places in the run, over all batches and ranks: what draws hang together by, if at
        all.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Quantile:
    """Draws by inverting the cumulative distribution function."""

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies."""
        raise NotImplementedError

    def __call__(self, n: int, generator: Generators, positions: Sequence[int] | None = None) -> Float[Tensor, " n"]:
        """``n`` independent draws in float32, on the generator's device."""
        return self.quantile(uniform(n, generator)).float()


@dataclass(frozen=True, kw_only=True)
class LogitNormal(_Quantile):
    """``sigmoid(N(mu, sigma))``.

    Source: Esser et al. 2024, section 3.1. The published config's ``timestep_mu``, ``timestep_sigma``.
    """

    mu: float = -0.4
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a width that is no width."""
        if not self.sigma > 0:
            raise ValueError(f"timesteps.sigma={self.sigma}: need > 0")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies."""
        # A float32 uniform can be exactly 0; half its spacing keeps the normal quantile finite.
        u = u.double().clamp(2.0**-25, 1 - 2.0**-25)
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class LogitNormalMax(LogitNormal):
    """The larger of two logit-normal draws, which leans to high noise: what the original fine-tuning uses.

    Source: upstream ``sample_t_r``: two draws, t the larger, r the smaller; without mean flow r is then set to t,
    but t stays the maximum. The maximum of two has the square of the single draw's distribution function.
    """

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies."""
        return super().quantile(u.double().sqrt())


@dataclass(frozen=True, kw_only=True)
class Uniform(_Quantile):
    """Uniform between ``low`` and ``high``."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an empty range or one outside [0, 1]."""
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"timesteps.low={self.low}, timesteps.high={self.high}: need 0 <= low < high <= 1")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies."""
        return self.low + (self.high - self.low) * u.double()


@dataclass(frozen=True, kw_only=True)
class Discrete(_Quantile):
    """Uniform over a few values, as distilled models see them (upstream's legacy trainer: turbo's eight).

    The default is the 8-step schedule of shift 3.
    """

    values: tuple[float, ...] = tuple(shifted(1 - i / 8, 3.0) for i in range(8))

    def __post_init__(self) -> None:
        """Accept any sequence, refuse values outside (0, 1]."""
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or not all(0 < t <= 1 for t in self.values):
            raise ValueError(f"timesteps.values={list(self.values)}: need at least one, each above 0 and at most 1")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies."""
        values = torch.tensor(sorted(self.values), dtype=torch.float64, device=u.device)
        return values[(u.double() * len(values)).long().clamp(max=len(values) - 1)]


@dataclass(frozen=True, kw_only=True)
class Warped(_Quantile):
    """Another distribution with its t shifted towards noise (``shift`` > 1) or data, as a shifted schedule does."""

    base: Timesteps = Uniform()
    shift: float = 3.0

    def __post_init__(self) -> None:
        """Refuse a shift that turns time around."""
        if not self.shift > 0:
            raise ValueError(f"timesteps.shift={self.shift}: need > 0 (1 changes nothing)")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The t below which a share ``u`` of the draws lies."""
        return shifted(self.base.quantile(u), self.shift)


@dataclass(frozen=True, kw_only=True)
class Stratified:
    """Another distribution, with one draw from each n-th of its mass: less noisy losses for the same average.

    Every ``strata`` consecutive songs of a run hold one draw of each stratum, however batches, accumulation and ranks
    cut the run. A lone batch, without places in a run, is cut into as many strata as it has songs.

    Attributes:
        base: The distribution.
        strata: Into how many parts of equal mass it is cut; the songs of one optimiser step, over all ranks.
    """

    base: Timesteps = LogitNormalMax()
    strata: int = 16

    def __post_init__(self) -> None:
        """Refuse to cut into nothing."""
        if self.strata < 1:
            raise ValueError(f"timesteps.strata={self.strata}: need at least 1 (1 changes nothing)")

    def quantile(self, u: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The base's: stratifying changes how draws hang together, not their distribution."""
        return self.base.quantile(u)

    def __call__(self, n: int, generator: Generators, positions: Sequence[int] | None = None) -> Float[Tensor, " n"]:
        """``n`` draws in float32, on the generator's device."""
        if positions is not None:
            strata, parts = torch.tensor([self._stratum(position) for position in positions]), self.strata
        elif isinstance(generator, Generator):
            strata, parts = torch.randperm(n, generator=generator, device=generator.device), n
        else:
            raise ValueError("timesteps=stratified: needs one generator per batch, or the songs' places in the run")
        within = uniform(n, generator)
        return self.quantile((strata.to(within.device) + within.double()) / parts).float()

    def _stratum(self, position: int) -> int:
        block, place = divmod(position, self.strata)
        return int(torch.randperm(self.strata, generator=Generator().manual_seed(block))[place])


def validation_grid(n: int) -> Float[Tensor, " n"]:
    """``n`` fixed times, the middles of equal cells of [0, 1]: for losses that are comparable between steps."""
    if n < 1:
        raise ValueError(f"validation.times={n}: need >= 1")
    return (torch.arange(n) + 0.5) / n
