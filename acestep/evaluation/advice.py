"""What an evaluation is too small for, in words."""

from __future__ import annotations

from collections.abc import Mapping

FEWEST_PROMPTS = 30
WINDOWS_PER_DIMENSION, SONGS_FOR_FAD = 5, 300


def advice(prompts: int, sets: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence for each number that should not be quoted yet; none where there are songs enough.

    Args:
        prompts: how many there are.
        sets: the numbers of one cell's songs together, by metric.
    """
    found = []
    if prompts < FEWEST_PROMPTS:
        found.append(f"{prompts} prompts: intervals of means are rough below {FEWEST_PROMPTS}")
    for metric, values in sets.items():
        if "dimensions" in values and values["windows"] < WINDOWS_PER_DIMENSION * values["dimensions"]:
            found.append(
                f"{metric}: {values['windows']:g} windows in {values['dimensions']:g} dimensions; compare it only at "
                f"equal numbers of songs, and quote it from {WINDOWS_PER_DIMENSION * values['dimensions']:g} windows "
                f"and {SONGS_FOR_FAD} songs on; a kernel distance (kad) needs fewer"
            )
    return found
