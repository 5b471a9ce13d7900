"""How well a model's attention walks through the lyrics as its song goes on (upstream ``core/scoring/dit_score.py``).

The score is not calibrated: a perfect walk of N tokens over F frames scores F / (F + N - 1). Compare it at equal lyrics
and equal duration only.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

HEARD = 0.1
TRACE = 0.01
BACKWARD_FRAMES = 9.0


def alignment_score(attention: Float[Tensor, "n f"], sung: Bool[Tensor, " n"] | None = None) -> float:
    """Coverage squared, times monotonicity squared, times confidence; 0 to 1, rounded to 4 places as upstream does.

    Args:
        attention: of each lyric token (row) at each latent frame, mean over the model's alignment heads.
        sung: the rows that are words; those of section tags are left out. ``None`` takes all.
    """
    rows = attention if sung is None else attention[sung]
    low, high = (float(rows.min()), float(rows.max())) if rows.numel() else (0.0, 0.0)
    if high <= low:
        return 0.0
    energy = (rows.double() - low) / (high - low)
    coverage = float((energy.amax(1) > HEARD).double().mean())
    path = warping_path(-energy.square())
    confidence = float(energy[path[:, 0], path[:, 1]].mean())
    return round(min(coverage**2 * _monotonicity(energy) ** 2 * confidence, 1.0), 4)


def warping_path(cost: Float[Tensor, "n f"]) -> Tensor:
    """The cheapest walk (steps, 2) from the first row and column to the last, by steps right, down or both.

    A tie is broken to the right, then down: the diagonal is taken only where it is cheaper than both (as Whisper's
    ``dtw_cpu``, which upstream follows).
    """
    values = cost.double().cpu().numpy()
    rows, columns = values.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((rows + 1, columns + 1), np.int8)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            both, down, right = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            if both < down and both < right:
                best, step[i, j] = both, 0
            elif down < both and down < right:
                best, step[i, j] = down, 1
            else:
                best, step[i, j] = right, 2
            if i == 1 and j == 1:
                best = 0.0
            total[i, j] = values[i - 1, j - 1] + best
    i, j, path = rows, columns, []
    while i > 1 or j > 1:
        path.append((i - 1, j - 1))
        kind = 2 if i == 1 else 1 if j == 1 else step[i, j]
        i, j = i - (kind != 2), j - (kind != 1)
    return torch.tensor([*path, (0, 0)][::-1])


def _monotonicity(energy: Float[Tensor, "n f"]) -> float:
    """Share of neighbouring rows whose centre of attention does not move back by more than a breath."""
    weight = torch.where(energy > TRACE, energy, 0.0)
    mass = weight.sum(1)
    centres = (weight @ torch.arange(weight.shape[1], dtype=weight.dtype))[mass > 0] / mass[mass > 0]
    if len(centres) < 2:
        return 1.0
    return float((centres.diff() >= -BACKWARD_FRAMES).double().mean())
