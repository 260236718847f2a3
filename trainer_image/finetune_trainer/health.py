"""Tells a training that has broken from one that is merely noisy; no input, no output, no torch.

A loss that is not a number ends the run at once. A loss that jumps up and stays there ends it after
`PATIENCE` steps: it will not come back, and the GPUs are better used otherwise. Ordinary runs must
never be taken for that. What tells them apart:

- every bound is taken from the run itself: the median of its last `WINDOW` losses, their spread
  (median absolute deviation) and their upper tenth, so noise of small batches, easy and hard
  examples in turn, and outliers move the bound and not the verdict;
- a loss counts only if it is also half again as large as the median and a whole nat above it: near
  0.69, where DPO begins, or near 0, where a learned data set ends, nothing small is a jump;
- `PATIENCE` steps one after the other have to be like that, and move the bound only if they end;
- the first `WARM_UP` losses of a run only teach it.

A slow climb over hundreds of steps is not a spike: the held-out loss and early stopping see that.
"""

from __future__ import annotations

import math
import statistics

from finetune_api.base import ApiModel

WINDOW = 128
"""Losses that the bound is taken from."""
WARM_UP = 32
"""Losses before the first verdict on a spike."""
PATIENCE = 10
"""Steps in a row above the bound."""
SPREADS = 8.0
"""The bound is this many standard deviations above the median ..."""
RELATIVE = 0.5
"""... and this part of the median above it ..."""
ABSOLUTE = 1.0
"""... and so many nats above it."""
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_UPPER = 0.9  # ... and not below the loss that a tenth of the steps exceed

_ADVICE = (
    "lower spec.training.learningRate, raise spec.training.warmupFraction, or look for broken "
    "examples in the data"
)


class WatchState(ApiModel):
    """What a checkpoint keeps of the watch, so that a resumed run judges like one that went on."""

    recent: tuple[float, ...] = ()
    """The last losses before the suspects, oldest first, in nats; at most `WINDOW`."""
    suspects: tuple[float, ...] = ()
    """The losses above the bound since then, oldest first; fewer than `PATIENCE`."""


class LossWatch:
    """Judges every step of a run. All processes see the same losses, so all judge alike."""

    def __init__(self, state: WatchState | None = None) -> None:
        """Start anew, or where a checkpoint was."""
        state = state or WatchState()
        self._recent = list(state.recent[-WINDOW:])
        self._suspects = list(state.suspects)

    def state(self) -> WatchState:
        """For the checkpoint's manifest."""
        return WatchState(recent=tuple(self._recent), suspects=tuple(self._suspects))

    @property
    def healthy(self) -> bool:
        """Whether the last step was in order: only then is a checkpoint one to go back to."""
        return not self._suspects

    def see(
        self, step: int, total_steps: int, loss: float, grad_norm: float, rate: float
    ) -> str | None:
        """Judge a step.

        Args:
            step: Counted from 1.
            loss: Of the global batch, in nats per learned token.
            grad_norm: Before clipping.
            rate: Learning rate of the step.

        Returns:
            Why the run has diverged, for people; None while it is in order.
        """
        where = f"training diverged at step {step} of {total_steps}"
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            broken = f"the loss is {loss}"
            if math.isfinite(loss):
                broken = f"the gradient is {grad_norm}"
            return f"{where}: {broken} at learning rate {rate:.3g}; {_ADVICE}"
        limit = bound(self._recent)
        if limit is None or loss <= limit:
            # Suspects that came to nothing are part of the noise: without them the bound would
            # creep down into it.
            self._recent = [*self._recent, *self._suspects, loss][-WINDOW:]
            self._suspects.clear()
            return None
        self._suspects.append(loss)
        if len(self._suspects) < PATIENCE:
            return None
        return (
            f"{where}: the loss rose from {statistics.median(self._recent):.3g} to "
            f"{statistics.median(self._suspects):.3g} and has stayed there for {PATIENCE} steps, "
            f"at learning rate {rate:.3g}; {_ADVICE}"
        )


def bound(recent: list[float]) -> float | None:
    """The loss above which a step is suspect; None while too few are known."""
    if len(recent) < WARM_UP:
        return None
    median = statistics.median(recent)
    spread = _MAD_TO_DEVIATION * statistics.median(abs(loss - median) for loss in recent)
    upper = sorted(recent)[int(_UPPER * len(recent))]
    return max(upper, median + max(SPREADS * spread, RELATIVE * abs(median), ABSOLUTE))
