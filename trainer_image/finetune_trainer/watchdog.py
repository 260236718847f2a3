"""Notices that a process no longer gets on, says where it is stuck, and ends it with 204.

A thread of every training process counts the seconds since the last sign of progress and compares
them with the budget of what the process is doing. It counts its own ticks: time in which the whole
process did not run (SIGSTOP, a frozen pod, a suspended machine) is nobody's delay.

Every activity has a budget of its own, in seconds, and starts with all of it:

| activity | budget |
|---|---|
| Starting: imports, and the workers finding each other | 2100 |
| Loading, Checkpointing, Saving, Done | 600 + what reading or writing takes at 20 MB/s |
| Evaluating: until the next batch | 600 |
| Training: until the first step | 600 |
| Training: until the next step | max(60, 10 x the median step) |

A main thread that waits in C for ever has let go of Python's lock, so this thread runs. One that
holds the lock for `LOCK_SECONDS` is ended by faulthandler, whose thread needs no lock; `cascade`
knows it by the stacks that it leaves.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from finetune_api.outcome import ExitCode, Failure, Outcome
from finetune_trainer.outcome_file import write_outcome

Activity = Literal[
    "Starting", "Loading", "Evaluating", "Training", "Checkpointing", "Saving", "Done"
]
"""As the status names them, and what comes before."""

STEPS_REMEMBERED = 50
"""Steps whose median counts."""
LOCK_SECONDS = 1800
"""Longest time without Python's lock; as long as a collective may take."""
STACKS = "{rank}.stacks"
"""In the directory of the outcomes: where faulthandler writes when Python itself is stuck."""
_TELL_SECONDS = 10.0
_MAIN_FRAMES = 12
_COLLECTIVES = ("torch/distributed/", "deepspeed/comm/")


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
        limits, median = self.limits, self.median
        if self.activity == "Training":
            if median is None:
                return limits.first_step
            return max(limits.step, (limits.steps + self._between - 1) * median)
        if self.activity == "Evaluating":
            return limits.evaluating
        if self.activity == "Starting":
            return limits.starting
        return limits.transfer + self._bytes / limits.bytes_per_second

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


class Watchdog:
    """The thread. One in every training process, from its start to its end."""

    def __init__(
        self,
        rank: int,
        directory: Path | None = None,
        limits: Limits | None = None,
        end: Callable[[Failure, str], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Not started yet.

        Args:
            directory: Of the processes' outcomes, see `launch`; None: run by hand.
            end: Called with the failure and all stacks; default: tell and end the process.
        """
        self.countdown = Countdown(limits or Limits())
        self._rank, self._directory = rank, directory
        self._end = end or leave
        self._monotonic = monotonic
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._stacks: IO[str] | None = None

    def start(self) -> Watchdog:
        """Begin to watch, with the activity Starting."""
        if self._directory is not None:
            path = self._directory / STACKS.format(rank=self._rank)
            self._stacks = path.open("w", encoding="utf-8")
        self._arm()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self, activity: Activity, size: int = 0) -> None:
        """As `Countdown.begin`."""
        with self._lock:
            self.countdown.begin(activity, size)

    def alive(self) -> None:
        """As `Countdown.alive`."""
        with self._lock:
            self.countdown.alive()

    def step_ended(self, step: int, seconds: float, steps: int = 1) -> None:
        """As `Countdown.step_ended`."""
        with self._lock:
            self.countdown.step_ended(step, seconds, steps)

    def _run(self) -> None:
        tick, last = self.countdown.limits.tick, self._monotonic()
        armed = last
        while not self._stopped.wait(tick):
            now = self._monotonic()
            if now - armed > LOCK_SECONDS / 10:
                self._arm()
                armed = now
            with self._lock:
                over = self.countdown.tick(now - last)
            last = now
            if over > 0 and (over > self.countdown.limits.grace or not waits_for_others()):
                self._expire()
                break
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        if self._stacks is not None:
            faulthandler.dump_traceback_later(LOCK_SECONDS, exit=True, file=self._stacks)

    def _expire(self) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = traceback.extract_stack(frame) if frame else traceback.StackSummary()
        where = f"{stack[-1].name} ({_short(stack[-1].filename)})" if stack else "no function"
        lines = "".join(traceback.format_list(stack[-_MAIN_FRAMES:]))
        failure = Failure(
            failure_class="Hang",
            message=self.countdown.message(where),
            rank=self._rank,
            step=self.countdown.step,
            time=time.time(),
            log_tail=f"main thread of rank {self._rank}:\n{lines}",
        )
        self._end(failure, all_stacks())


def waits_for_others() -> bool:
    """Whether any thread of this process is in a collective: then another process is the cause."""

    def collective(frame: FrameType | None) -> bool:
        while frame is not None:
            if any(part in frame.f_code.co_filename for part in _COLLECTIVES):
                return True
            frame = frame.f_back
        return False

    return any(collective(frame) for frame in sys._current_frames().values())


def all_stacks() -> str:
    """The stacks of all threads, by faulthandler: it reads them without running any code."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()


def leave(failure: Failure, stacks: str) -> None:
    """Write the outcome, print the stacks, and end the process, whatever the main thread does."""

    text = (
        f"stacks of rank {failure.rank}:\n{stacks}\n{failure.log_tail}"
        f"rank {failure.rank} hangs: {failure.message}\n"
    )

    def tell() -> None:
        try:
            write_outcome(Outcome(failure=failure))
        finally:
            # Not by print: the main thread may hold the lock of standard output.
            rest = text.encode(errors="replace")
            while rest:
                rest = rest[os.write(1, rest) :]

    # In a thread of its own: a pipe that nobody reads must not keep the process.
    teller = threading.Thread(target=tell, name="watchdog-tell", daemon=True)
    teller.start()
    teller.join(_TELL_SECONDS)
    os._exit(int(ExitCode.HANG))


def _short(path: str) -> str:
    """The last parts of a file's path."""
    return "/".join(Path(path).parts[-3:])
