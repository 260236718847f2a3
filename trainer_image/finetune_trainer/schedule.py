"""The learning rate of every step, as a pure function."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["Cosine", "Linear", "Constant"]


def learning_rate(
    step: int, total_steps: int, peak: float, schedule: Schedule, warmup_fraction: float
) -> float:
    """The learning rate of one step.

    It rises by equal parts and reaches `peak` with the last step of the warm-up, then falls
    towards zero. No step has a rate of zero: it would cost as much as any other and change nothing.

    Args:
        step: Counted from 0.
        total_steps: Steps of the whole run.
        peak: Highest learning rate.
        warmup_fraction: Part of all steps, 0 to 1; rounded up to whole steps.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} is not one of {total_steps}")
    warmup = math.ceil(total_steps * warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / (total_steps - warmup)  # 0 <= done < 1
    match schedule:
        case "Cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * done))
        case "Linear":
            return peak * (1.0 - done)
        case "Constant":
            return peak
