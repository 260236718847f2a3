"""The watchdog's arithmetic: for how long a process may do what it does without getting on.

Every activity has a budget of its own, in seconds, and starts with all of it:

| activity | budget |
|---|---|
| Starting: imports, and the workers finding each other | 2100 |
| Loading, Checkpointing, Saving, Done | 600 + what reading or writing takes at 20 MB/s |
| Evaluating: until the next batch | 600 |
| Training: until the first step | 600 |
| Training: until the next step | max(60, 10 x the median step) |

`spec.hangPolicy` may say other numbers for all but Starting and the first step.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from finetune_api.run_config import HangConfig

Activity = Literal[
    "Starting", "Loading", "Evaluating", "Training", "Checkpointing", "Saving", "Done"
]
"""As the status names them, and what comes before."""

STEPS_REMEMBERED = 50
"""Steps whose median counts."""


@dataclass(frozen=True)
class Limits:
    """The budgets; tests have smaller ones."""

    starting: float = 2100.0
    """A worker waits 30 minutes for the others."""
    transfer: float = 600.0
    bytes_per_second: float = 20e6
    """The slowest volume that a job has to get along with."""
    evaluating: float = 600.0
    first_step: float = 600.0
    """Kernels are compiled and memory is found in the first one."""
    step: float = 60.0
    steps: int = 10
    grace: float = 5.0
    """Longer for a process that waits for others: the one they wait for should speak first."""
    tick: float = 1.0
    training: float | None = None
    """From one step to the next; None: by the median step."""
    loading: float | None = None
    checkpointing: float | None = None
    """Saving the result, too."""

    @classmethod
    def of(cls, told: HangConfig) -> Limits:
        """As the job wants them."""
        evaluating = told.evaluating_seconds
        return cls(
            training=told.training_seconds,
            loading=told.loading_seconds,
            evaluating=cls.evaluating if evaluating is None else evaluating,
            checkpointing=told.checkpointing_seconds,
        )


@dataclass
class Countdown:
    """The watchdog's arithmetic: what is being done, since when, and for how long it may."""

    limits: Limits = Limits()
    activity: Activity = "Starting"
    step: int | None = None
    """The last one that ended."""
    spent: float = 0.0
    """Seconds since the last sign of progress."""
    _bytes: int = 0
    _between: int = 1
    _seconds: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS_REMEMBERED))

    def begin(self, activity: Activity, size: int = 0) -> None:
        """Something else is done now; `size`: bytes that will be read or written."""
        self.activity, self._bytes, self.spent = activity, size, 0.0

    def alive(self) -> None:
        """It gets on: another batch, another file."""
        self.spent = 0.0

    def step_ended(self, step: int, seconds: float, steps: int = 1) -> None:
        """Optimizer steps ended.

        Args:
            step: The last of them, counted from 1.
            seconds: What one took.
            steps: How many there are between two calls: more than one where the host waits for
                the GPU only now and then.
        """
        self._seconds.append(seconds)
        self.step, self._between, self.spent = step, steps, 0.0

    def tick(self, elapsed: float) -> float:
        """Count time; returns the seconds over the budget, negative while it lasts.

        Args:
            elapsed: Since the last tick. More than two ticks at once have not been lived through.
        """
        self.spent += min(elapsed, 2 * self.limits.tick)
        return self.spent - self.budget

    @property
    def median(self) -> float | None:
        """Seconds of a step."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def budget(self) -> float:
        """Seconds that may pass without a sign of progress."""
        limits = self.limits
        if self.activity == "Training":
            return self._for_a_step()
        if self.activity == "Evaluating":
            return limits.evaluating
        if self.activity == "Starting":
            return limits.starting
        wanted = limits.loading if self.activity == "Loading" else limits.checkpointing
        transfer = limits.transfer + self._bytes / limits.bytes_per_second
        return transfer if wanted is None else wanted

    def _for_a_step(self) -> float:
        limits, median = self.limits, self.median
        if median is None:
            return max(limits.first_step, limits.training or 0.0)
        if limits.training is not None:
            return limits.training * self._between
        return max(limits.step, (limits.steps + self._between - 1) * median)

    def message(self, where: str) -> str:
        """For people; `where`: what the main thread does."""
        median, budget = self.median, f"{self.budget:.0f} s"
        since = f"after step {self.step}" if self.step else "before the first step"
        if self.activity != "Training":
            what = f"{self.activity.lower()} has not got on for {budget} {since}"
        elif median is None:
            what = f"the first step has not ended within {budget}"
        else:
            what = f"no step has ended for {budget} {since}, a step takes {median:.2g} s"
        return (
            f"{what}; the process was in {where}; a volume, a GPU or the network does not answer, "
            "or another worker does not: the log has the stacks of all threads"
        )
