"""Which checkpoints of a run stay (pure)."""

import math
from collections.abc import Mapping
from typing import Literal


def checkpoints_to_keep(scores: Mapping[int, float | None], keep: int, mode: Literal["max", "min"]) -> set[int]:
    """Choose the best ``keep`` checkpoints and the last one.

    Args:
        scores: Score of each checkpoint by its iteration. None and NaN are unknown, and worse than any score.
        keep: How many of the best to keep, at least 1.
        mode: Whether a high score is good (``"max"``) or a low one.

    Returns:
        The iterations to keep. Of equal scores the later is the better.
    """
    sign = 1.0 if mode == "max" else -1.0

    def worth(iteration: int) -> tuple[float, int]:
        score = scores[iteration]
        if score is None or math.isnan(score):
            return (-math.inf, iteration)
        return (sign * score, iteration)

    best = sorted(scores, key=worth, reverse=True)[:keep]
    return {*best, max(scores)} if scores else set()
